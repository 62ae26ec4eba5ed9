"""The files that hold a published backbone's weights."""

import dataclasses
from pathlib import Path

from wmjax.core.errors import UserError
from wmjax.core.paths import listed
from wmjax.core.reading import read_json

INDEX, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"


@dataclasses.dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights, those that transformers loads: one file, else the shards of its index.

    An index or shards that an earlier save left beside a single file count for nothing.

    Raises:
        UserError: no such files, or a damaged index.

    """
    single, index = folder / SINGLE_FILE, folder / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        others = [*listed(folder, "*.safetensors"), *listed(folder, "*.bin"), *listed(folder, "*.gguf")]
        if others and not single.exists():
            raise UserError(
                f"{folder}: neither {SINGLE_FILE} nor {INDEX} is there, but {others[0].name}; save the model again "
                "with save_pretrained of transformers, which writes them"
            )
        return [single]
    shards = set(read_json(index, _Index, "download it again").weight_map.values())
    if bad := sorted(name for name in shards if Path(name).name != name or not name):
        raise UserError(f"{index}: weight_map names {bad[0]!r}, which is not a file beside it; download it again")
    return sorted(folder / name for name in shards)
