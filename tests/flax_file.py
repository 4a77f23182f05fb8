"""Files as flax writes them, for tests."""

from typing import Any

import msgpack


def flax_bytes(tree: dict[str, Any]) -> bytes:
    """As `flax.serialization.to_bytes` writes it: arrays are an extension of shape, dtype and values."""

    def array(value: Any) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))

    return msgpack.packb(tree, default=array)
