"""A test bench for certifiers of l2 robustness: layers of known norm, networks of known radius, known counter-examples.

    from lipcert.bench import run_bench

    report = run_bench(bound=my_bound, certify=my_certify)     # each a callable of yours; either may be left out
    print(report.table())
    assert report.sound

- `bound(layer, input_shape) -> float`: an upper bound on the l2 norm of a plain nn.Linear or nn.Conv2d.
- `certify(model, images_BCHW) -> (prediction_B, radius_B)`: for an nn.Sequential; -1 or radius 0 where nothing is
  promised. Raising any exception is refusing, and refusing is never wrong.

Attacks are weak falsifiers; here the truth is known instead (`families`, `razor`, `aligned`, `blocks`), and what
certifiers got wrong before is kept with witnesses that are executed (`corpus`). That the bench has teeth is shown by
`mutation_table`: each of some ninety unsound certifiers fails it, as does the power method. It needs torch and numpy,
and of lipcert only the activation MinMax (give `activation` to use another) and the module `Residual`: a certifier that
does not know it refuses those networks.
"""

from lipcert.bench.mutation import as_markdown, mutation_table
from lipcert.bench.report import BenchReport, CheckResult
from lipcert.bench.run import examine, main, prepare, run_bench
from lipcert.bench.verdict import Case, Claim

__all__ = [
    "BenchReport",
    "Case",
    "CheckResult",
    "Claim",
    "as_markdown",
    "examine",
    "main",
    "mutation_table",
    "prepare",
    "run_bench",
]
