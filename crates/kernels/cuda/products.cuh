// The names of the products: OP_FORMAT_TYPE_8 for at most eight rows, normed on the way in (but for `add`, whose input is no
// norm's), and OP_FORMAT_TYPE_64 for any number, as they are.
#pragma once

#include "batch.cuh"

#define PRODUCT(name, Op, Type, Format, norm)                                                                     \
    KERNEL(name##_8, PRODUCT_THREADS, PRODUCT_BLOCKS, Op<Type>::Params, product<Type, Format, Op<Type>, norm>)    \
    KERNEL(name##_64, BATCH_THREADS, 1, Op<Type>::Params, batch<Type, Format, Op<Type>>)

#define PRODUCTS(format, type, Format, Type)                          \
    PRODUCT(qkv_##format##_##type, Qkv, Type, Format, true)           \
    PRODUCT(gate_up_##format##_##type, GateUp, Type, Format, true)    \
    PRODUCT(head_##format##_##type, Head, Type, Format, true)         \
    PRODUCT(add_##format##_##type, Add, Type, Format, false)
