"""Where the shares of eight branches begin, in vector instructions: for x86 processors with AVX2. Imports numba.

`edges` does what that of `edges_plain` does. One call works on one row; the processor overlaps the calls of the rows side by side.

Shapes: V nodes, G rows side by side.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["WEIGHT_ORDER", "branch_of", "edges"]

WEIGHT_ORDER = tuple(4 * block + hidden + 32 * branch for block in range(8) for branch in range(8) for hidden in range(4))
"""Places in the 8 x 32 weights of a node, as they lie here: four hidden numbers of each branch, then the next four."""

types = numba.types
I8, I16, I32, I64, F64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.DoubleType()
BYTES, SHORTS, INTS = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 8)
ROW_BYTES, FIRST_BYTES = 64, 4
"""Of a row of edges: sixteen int32, of which the first one is 0 and the next eight are those of a step."""


def _all(number: int) -> Any:
    return ir.Constant(INTS, [number] * 8)


def _long(number: int) -> Any:
    return ir.Constant(I64, number)


def _spread(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(INTS, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, ir.Constant(INTS, ir.Undefined), _all(0))


def _at(builder: Any, pointer: Any, offset: Any, kind: Any) -> Any:
    """Return a pointer to a value of a kind, so many bytes behind another pointer."""
    return builder.bitcast(builder.gep(builder.bitcast(pointer, I8.as_pointer()), [offset]), kind.as_pointer())


def _data(context: Any, builder: Any, kinds: Any, arguments: Any, number: int) -> Any:
    return context.make_array(kinds[number])(context, builder, arguments[number]).data


def _scores(context: Any, builder: Any, weights: Any, node: Any, hidden: Any, row: Any, biases: Any) -> Any:
    """Return the scores of eight branches: products of bytes in pairs, which stay below 2^15, then sums of pairs."""
    module = builder.module
    products = cgutils.get_or_insert_function(module, ir.FunctionType(SHORTS, [BYTES, BYTES]), "llvm.x86.avx2.pmadd.ub.sw")
    sums = cgutils.get_or_insert_function(module, ir.FunctionType(INTS, [SHORTS, SHORTS]), "llvm.x86.avx2.pmadd.wd")
    ones = ir.Constant(SHORTS, [1] * 16)
    total = builder.load(_at(builder, biases, builder.mul(node, _long(32)), INTS), align=4)
    for block in range(8):
        place = builder.add(builder.mul(node, _long(256)), _long(32 * block))
        own = builder.load(_at(builder, weights, place, BYTES), align=1)
        place = builder.add(builder.mul(row, _long(32)), _long(4 * block))
        four = _spread(builder, builder.load(_at(builder, hidden, place, I32), align=1))
        total = builder.add(total, builder.call(sums, [builder.call(products, [builder.bitcast(four, BYTES), own]), ones]))
    return total


def _best(builder: Any, values: Any) -> Any:
    """Return the largest of eight numbers, eight times."""
    for order in ([4, 5, 6, 7, 0, 1, 2, 3], [2, 3, 0, 1, 6, 7, 4, 5], [1, 0, 3, 2, 5, 4, 7, 6]):
        other = builder.shuffle_vector(values, values, ir.Constant(INTS, order))
        values = builder.select(builder.icmp_signed(">", values, other), values, other)
    return values


def _chances(builder: Any, distance: Any) -> Any:
    """Return the chances before they are scaled: `model.weight_table` at distances of at most 4096."""
    part = builder.and_(distance, _all(255))
    inner = builder.sub(_all(22006), builder.ashr(builder.mul(part, _all(5622)), _all(8)))
    whole = builder.sub(_all(32768), builder.ashr(builder.mul(part, inner), _all(8)))
    return builder.ashr(whole, builder.ashr(distance, _all(8)))


def _running(builder: Any, values: Any) -> Any:
    """Return the sums of the first one, two, … of eight numbers."""
    for order in ([8, 0, 1, 2, 3, 4, 5, 6], [8, 8, 0, 1, 2, 3, 4, 5], [8, 8, 8, 8, 0, 1, 2, 3]):
        values = builder.add(values, builder.shuffle_vector(values, _all(0), ir.Constant(INTS, order)))
    return values


def _edges(
    typing_context: Any, weights_VH8: Any, node: Any, hidden_GH: Any, row: Any, biases_V8: Any, down: Any, powers: Any, edges_G: Any
) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, hidden, biases, found = (_data(context, builder, signature.args, arguments, number) for number in (0, 2, 4, 7))
        node, row = arguments[1], arguments[3]
        scores = _scores(context, builder, weights, node, hidden, row, biases)
        distance = builder.ashr(builder.sub(_best(builder, scores), scores), _spread(builder, builder.trunc(arguments[5], I32)))
        distance = builder.select(builder.icmp_signed("<", distance, _all(4096)), distance, _all(4096))
        sums = _running(builder, _chances(builder, distance))
        whole = builder.sitofp(builder.extract_element(sums, ir.Constant(I32, 7)), F64)
        # A quotient of numbers below 2^31 and 2^19 is never nearer to a whole number than a double tells apart.
        inverse = builder.fptosi(builder.fdiv(ir.Constant(F64, float(32760 << 16)), whole), I32)
        scaled = builder.lshr(builder.mul(sums, _spread(builder, inverse)), _all(16))
        scaled = builder.add(scaled, ir.Constant(INTS, list(range(1, 9))))
        scaled = builder.insert_element(scaled, ir.Constant(I32, 32768), ir.Constant(I32, 7))
        place = builder.add(builder.mul(row, _long(ROW_BYTES)), _long(FIRST_BYTES))
        builder.store(scaled, _at(builder, found, place, INTS), align=4)
        return context.get_dummy_value()

    return types.void(weights_VH8, types.int64, hidden_GH, types.int64, biases_V8, types.int64, powers, edges_G), code


def _branch_of(typing_context: Any, edges_G: Any, row: Any, low: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.add(builder.mul(arguments[1], _long(ROW_BYTES)), _long(FIRST_BYTES))
        found = builder.load(_at(builder, _data(context, builder, signature.args, arguments, 0), place, INTS), align=4)
        under = builder.icmp_signed("<=", found, _spread(builder, builder.trunc(arguments[2], I32)))
        return builder.zext(builder.ctpop(builder.bitcast(under, I8)), I64)

    return types.int64(edges_G, types.int64, types.int64), code


edges, branch_of = intrinsic(_edges), intrinsic(_branch_of)
