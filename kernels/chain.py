"""The fused twin of `jacrec.engine.jacobians.chain`: the same names, arguments and returns, one launch each (Triton)."""

from jacrec.kernels.chain_adjoint import ChainTape, chain_adjoint, chain_record
from jacrec.kernels.chain_forward import chain_forward, level_table

__all__ = ["ChainTape", "chain_adjoint", "chain_forward", "chain_record", "level_table"]
