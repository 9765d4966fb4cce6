"""Speed on this machine: routing, encoding and answering, each beside a plain or peer baseline and its floor.

``msa bench`` and the scripts in ``benchmarks/`` measure with the same parts: :mod:`~msa.bench.timing` and
:mod:`~msa.bench.floors` below, :mod:`~msa.bench.routing`, :mod:`~msa.bench.encoding` and :mod:`~msa.bench.answering`
above.
"""

from msa.bench.answering import bench_answering
from msa.bench.encoding import bench_encoding
from msa.bench.figures import Figure, table_rows
from msa.bench.routing import SHAPES, Shape, bench_routing

__all__ = ["SHAPES", "Figure", "Shape", "bench_answering", "bench_encoding", "bench_routing", "table_rows"]
