#!/usr/bin/env bash
# torch 2.13.0: torch.special.airy_ai, bessel_j0, bessel_j1, bessel_y0 and bessel_y1 of float64 have the accuracy of
# float32 where their two approximations meet: errors of 3e-6 (airy_ai at -2.09, 2e-5 of the value),
# 4e-7 to 9e-7 (Bessel functions just above 5) and 1e-8 below 5. scipy, after the same Cephes library, is right to 1e-14
# there. polygamma(1, x), the gradient of digamma, is right to 3e-10 of itself, and polygamma(2, x) to 1e-14. Nothing is
# said, the documentation names no accuracy, and the modified Bessel functions beside them are right to 1e-14. So a
# reference that is computed with these functions in float64 has half the digits that it seems to have.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 scipy==1.17.1 mpmath==1.3.0
cat > "$work/program.py" <<'P'
import mpmath
import numpy as np
import scipy.special
import torch
from torch import special

mpmath.mp.dps = 30
FUNCTIONS = {  # torch, scipy, mpmath, between, least and largest error of torch relative to the largest value there
    "airy_ai": (special.airy_ai, lambda x: scipy.special.airy(x)[0], mpmath.airyai, (-2.3, -2), 1e-6, 1e-4),
    "bessel_j0": (special.bessel_j0, scipy.special.j0, lambda x: mpmath.besselj(0, x), (5, 6), 1e-7, 1e-5),
    "bessel_j1": (special.bessel_j1, scipy.special.j1, lambda x: mpmath.besselj(1, x), (5, 6), 1e-7, 1e-5),
    "bessel_y0": (special.bessel_y0, scipy.special.y0, lambda x: mpmath.bessely(0, x), (5, 6), 1e-7, 1e-5),
    "bessel_y1": (special.bessel_y1, scipy.special.y1, lambda x: mpmath.bessely(1, x), (5, 6), 1e-7, 1e-5),
    "polygamma(1, x)": (lambda x: special.polygamma(1, x), lambda x: scipy.special.polygamma(1, x),
                        lambda x: mpmath.psi(1, x), (0.5, 0.6), 1e-10, 1e-8),
    "polygamma(2, x)": (lambda x: special.polygamma(2, x), lambda x: scipy.special.polygamma(2, x),
                        lambda x: mpmath.psi(2, x), (0.5, 0.6), 0, 1e-13),
    "modified_bessel_i0": (special.modified_bessel_i0, scipy.special.i0, lambda x: mpmath.besseli(0, x), (5, 6), 0,
                           1e-13),
    "modified_bessel_k0": (special.modified_bessel_k0, scipy.special.k0, lambda x: mpmath.besselk(0, x), (5, 6), 0,
                           1e-13),
}
for name, (ours, theirs, exact, (low, high), least, most) in FUNCTIONS.items():
    x = np.linspace(low, high, 301)[1:]
    true = np.array([float(exact(mpmath.mpf(float(one)))) for one in x])
    found = ours(torch.from_numpy(x))
    assert found.dtype == torch.float64
    errors = np.abs(found.numpy() - true)
    at, size = errors.argmax(), np.abs(true).max()
    others = np.abs(theirs(x) - true).max() / size
    print(f"{name} from {low} to {high}: torch is off by {errors[at] / size:.1e} of the largest value, at {x[at]:.3f}"
          f" {found[at]:.12f} for {true[at]:.12f}; scipy by {others:.0e}")
    assert least <= errors[at] / size < most, name
    assert others < 1e-13, name
x = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
torch.digamma(x).backward()
print(f"gradient of digamma at 0.5: {x.grad:.12f}, pi squared / 2: {float(mpmath.pi**2 / 2):.12f}")
assert 1e-10 < abs(x.grad.item() - float(mpmath.pi**2 / 2)) < 1e-8
P
"$work/venv/bin/python" "$work/program.py"
