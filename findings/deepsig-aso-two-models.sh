#!/usr/bin/env bash
# deepsig 1.2.8: multi_aso, by default with Bonferroni's correction, never finds one of two models better. Its README
# says that the error level is divided by the number of comparisons; a share of it is added to the confidence level
# instead, 0.95 + 0.05 / comparisons. One comparison makes that 1 and every result 1, "no difference", or, where all
# scores of one model are above all of the other, nan. With more comparisons the test gets weaker where it should get
# stricter: 0.967 for three and 0.951 for 45, where 0.983 and 0.999 are meant. aso(num_comparisons=...) does the same
# from 2 on. aso for the same two models finds the difference, and so does multi_aso with use_bonferroni=False.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1 deepsig==1.2.8
cat > "$work/program.py" <<'P'
import numpy as np
from deepsig import aso, multi_aso

OPTIONS = {"seed": 1, "show_progress": False, "num_bootstrap_iterations": 200}
random = np.random.default_rng(0)
worse = random.normal(0.0, 1.0, 20)
for name, better in (("0.5 standard deviations", random.normal(0.5, 1.0, 20)), ("10 in all scores", worse + 10.0)):
    scores = np.stack([better, worse])
    both, plain = (multi_aso(scores, use_bonferroni=use, **OPTIONS)[0, 1] for use in (True, False))
    alone = aso(better, worse, **OPTIONS)
    print(f"better by {name}, smallest epsilon (below 0.5: better): multi_aso {both:.3f}, without correction"
          f" {plain:.3f}, aso {alone:.3f}")
    assert alone < 0.5 and plain < 0.5
    assert np.isnan(both) if name == "10 in all scores" else both == 1
better = worse[::-1] + random.normal(0.45, 0.4, 20)
for number in (1, 3, 10, 45):
    found = aso(better, worse, num_comparisons=number, **OPTIONS)
    meant = aso(better, worse, confidence_level=1 - 0.05 / number, **OPTIONS)
    print(f"{number} comparisons: smallest epsilon {found:.3f}, at confidence 1 - 0.05 / {number} {meant:.3f}")
    as_computed = aso(better, worse, confidence_level=0.95 + 0.05 / number if number > 1 else 0.95, **OPTIONS)
    assert found == as_computed and (found == meant) == (number == 1)
    if number > 1:
        assert found < meant
P
"$work/venv/bin/python" -W ignore "$work/program.py"
