"""What an image file says of its own making, so that it keeps its recipe when it leaves the run.

Two texts: the "infotext" that AUTOMATIC1111's web UI writes and many tools read, and IPTC's properties for pictures
made by a model (Photo Metadata Standard 2025.1) as XMP. Both follow from task, model and setting alone: equal tasks
with equal pixels make equal files, whoever renders them and whenever. Pixels are not touched.
"""

import io
import json
import re
import struct
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from pipeline.output.layout import Format, Setting
from pipeline.recipe import Recipe, RenderTask
from pipeline.samplers import sampler_name

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's word for a picture that a trained model made."""
XMP_KEYWORD = "XML:com.adobe.xmp"
INFOTEXT_KEYWORD = "parameters"

_SEGMENT_BYTES = 65533
"""What a segment of a JPEG file can hold."""
_XMP_HEAD_BYTES = 29
_HASH_DIGITS = 10
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_IDENTIFIER = re.compile(rb"<dc:identifier>([0-9a-f]{32})</dc:identifier>")
_EXIF, _USER_COMMENT = 0x8769, 0x9286


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The texts of one image."""

    task_id: str
    model: str
    settings: str
    """Last line of the infotext: everything but the prompts."""
    prompts: str | None
    """Its lines before; None where no user's text may be in the file."""

    @property
    def infotext(self) -> str:
        return self.settings if self.prompts is None else f"{self.prompts}\n{self.settings}"

    @property
    def xmp(self) -> bytes:
        """An XMP packet in UTF-8. Characters that XML cannot have become U+FFFD."""
        properties = {
            "Iptc4xmpExt:DigitalSourceType": SOURCE_TYPE,
            "Iptc4xmpExt:AISystemUsed": f"Darkroom with {self.model}",
            "Iptc4xmpExt:AIPromptInformation": self.prompts,
            "dc:identifier": self.task_id,
        }
        lines = [f"   <{name}>{_xml(text)}</{name}>" for name, text in properties.items() if text is not None]
        return _PACKET.format("\n".join(lines)).encode()

    def without_prompts(self) -> "Provenance":
        return Provenance(task_id=self.task_id, model=self.model, settings=self.settings, prompts=None)


_PACKET = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:dc="http://purl.org/dc/elements/1.1/">
{}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def provenance_of(
    task: RenderTask, setting: Setting | None, *, model_id: str, model_fingerprint: str
) -> Provenance | None:
    """What the file of this task's image says; None where it says nothing."""
    if setting in (None, "off"):
        return None
    model, recipe = _name(model_id), task.recipe
    prompts = recipe.prompt
    if (recipe.negative_prompt or "").strip():
        prompts += f"\nNegative prompt: {recipe.negative_prompt}"
    return Provenance(
        task_id=task.task_id,
        model=model,
        settings=_settings(recipe, model, model_fingerprint),
        prompts=prompts if setting == "full" else None,
    )


def save_options(text: Provenance, image_format: Format) -> dict[str, Any]:
    """What Pillow is told to put the texts into a file of this format.

    PNG has them in text chunks, the others in Exif's UserComment and an XMP block. A JPEG segment holds 64 KiB: there,
    prompts that are longer are left out, never cut.
    """
    if image_format == "png":
        chunks = PngInfo()
        chunks.add_text(INFOTEXT_KEYWORD, text.infotext)
        chunks.add_itxt(XMP_KEYWORD, text.xmp.decode())
        return {"pnginfo": chunks}
    if image_format == "webp":
        return {"exif": _exif(_utf_16(text)), "xmp": text.xmp}
    comments = [_utf_16(text), *([_ascii(text)] if text.infotext.isascii() else []), _utf_16(text.without_prompts())]
    packets = [text.xmp, text.without_prompts().xmp]
    return {
        "exif": next(block for block in map(_exif, comments) if len(block) <= _SEGMENT_BYTES),
        "xmp": next(packet for packet in packets if len(packet) + _XMP_HEAD_BYTES <= _SEGMENT_BYTES),
    }


def read_provenance(body: bytes) -> tuple[str | None, str | None]:
    """The task id and the infotext that an image file says, each None where it does not, or is no image."""
    try:
        with Image.open(io.BytesIO(body)) as image:
            image.load()  # a PNG's text may stand behind its pixels
            packet, infotext = image.info.get("xmp", b""), image.info.get(INFOTEXT_KEYWORD)
            comment = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT) if infotext is None else None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, struct.error):
        return None, None
    found = _IDENTIFIER.search(packet)
    if not isinstance(comment, bytes):  # none, or one that other programs wrote as a text
        pass
    elif comment.startswith(b"UNICODE\0"):
        infotext = comment[8:].decode("utf-16-be", "replace")
    elif comment.startswith(b"ASCII\0\0\0"):
        infotext = comment[8:].decode("ascii", "replace")
    return found[1].decode() if found else None, infotext


def _settings(recipe: Recipe, model: str, model_fingerprint: str) -> str:
    guidance = recipe.guidance_scale
    values = {
        "Steps": recipe.num_inference_steps,
        "Sampler": sampler_name(recipe.scheduler),
        "CFG scale": None if guidance is None else repr(guidance).removesuffix(".0"),
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model hash": model_fingerprint[:_HASH_DIGITS],
        "Model": model,
        "RNG": "CPU",
    }
    return ", ".join(f"{name}: {_quoted(str(value))}" for name, value in values.items() if value is not None)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ',:\n"') else value


def _name(model_id: str) -> str:
    """The last of a path or Hub id: where a model lies on somebody's disk is nobody's business."""
    return PurePosixPath(model_id).name or model_id


def _xml(text: str) -> str:
    """A carriage return must be written as a reference: XML readers make a newline of it."""
    return escape(_NOT_XML.sub("\ufffd", text), {"\r": "&#13;"})


def _utf_16(text: Provenance) -> bytes:
    return b"UNICODE\0" + text.infotext.encode("utf-16-be")


def _ascii(text: Provenance) -> bytes:
    return b"ASCII\0\0\0" + text.infotext.encode("ascii")


def _exif(comment: bytes) -> bytes:
    """Exif with nothing but a UserComment: TIFF header, a directory, the Exif directory it names; big-endian."""
    header = struct.pack(">6s2sHI", b"Exif\0\0", b"MM", 42, 8)
    first = struct.pack(">HHHIII", 1, _EXIF, 4, 1, 26, 0)
    second = struct.pack(">HHHIII", 1, _USER_COMMENT, 7, len(comment), 44, 0)
    return header + first + second + comment
