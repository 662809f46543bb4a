#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.numpy.save and save_file write the memory of an array as it lies, under the array's shape.
# An array that lies by columns, as the transpose of any matrix and the results of LAPACK do, comes back with its shape,
# dtype and values, each value in another place, from every reader, without a word. 0.7.0 writes it right. The documentation
# asks for arrays that are contiguous and dense, which such an array is (flags F_CONTIGUOUS). safetensors.torch refuses
# such tensors. So a weight that is transposed for another framework, which has its outputs first, is another weight in
# the file, and an upgrade is all it takes. numpy.ascontiguousarray before saving is right.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cat > "$work/program.py" <<'P'
import sys
from pathlib import Path

import numpy
import safetensors
from safetensors.numpy import load, load_file, save, save_file

file, right = Path(sys.argv[1]) / "weights.safetensors", safetensors.__version__ == "0.7.0"
kernel = numpy.random.default_rng(0).standard_normal((3, 4)).astype(numpy.float32)  # inputs first
weight = kernel.T  # outputs first
assert weight.flags["F_CONTIGUOUS"] and not weight.flags["C_CONTIGUOUS"] and weight.nbytes == 48
x = numpy.ones(3, numpy.float32)
print(f"safetensors {safetensors.__version__}, numpy {numpy.__version__}")
for name, array in (("by columns", weight), ("ascontiguousarray", numpy.ascontiguousarray(weight))):
    assert numpy.allclose(array @ x, x @ kernel)
    save_file({"weight": array}, file)
    for way, found in (("save_file", load_file(file)["weight"]), ("save", load(save({"weight": array}))["weight"])):
        same = numpy.array_equal(found, weight)
        print(f"{way}, {name}: {'the same' if same else 'another'} weight; of ones {(found @ x).round(2)}"
              f" instead of {(weight @ x).round(2)}")
        assert found.shape == weight.shape and found.dtype == weight.dtype
        assert numpy.array_equal(numpy.sort(found, None), numpy.sort(weight, None))
        assert same == (right or name == "ascontiguousarray"), name
P
for version in 0.7.0 0.8.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet numpy==2.4.6 safetensors=="$version"
    "$work/$version/bin/python" "$work/program.py" "$work"
done
