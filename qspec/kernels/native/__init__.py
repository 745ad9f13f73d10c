"""Native CPU kernels: linear layers on the stored planes, attention, and whole decoder steps, at memory speed.

The C++ beside this file is built when the package is installed (scikit-build-core, as a plug-in of setuptools, and
nanobind) and compiled once per instruction set; the CPU decides at run time. It knows nothing of torch: tensors enter
as addresses that the Python here has checked. Where there was no compiler at installation, or the CPU has none of the
instruction sets, ``load`` raises ``NativeUnavailable`` with the reason, and nothing else of this package can be used.

**One chain per output.** Element (row, output) of a linear layer is computed in sixteen lanes over the inputs, in
ascending order by fused multiply-add, then one tree over the lanes, whatever the number of rows, the thread, the
position in the batch and the instruction set (``linear.h``); attention goes in chunks of 64 absolute positions
(``attention.h``). So text does not depend on draft length, batch, prompt chunks or machine of one family, bit for bit.
A format's weights are exactly what its codec decodes to, except that a scale of a whole row multiplies the sum.
"""

from __future__ import annotations

from qspec.kernels.native.loading import NativeUnavailable, instruction_sets, load

__all__ = ["NativeUnavailable", "instruction_sets", "load"]
