// The kernels of image networks, for every type.
#include "image.cuh"

#define IMAGE(type, Type)                                                                       \
    KERNEL(group_sums_##type, IMAGE_THREADS, 3, GroupSums, group_sums<Type>)                   \
    KERNEL(group_apply_##type, IMAGE_THREADS, 3, GroupApply, group_apply<Type>)                \
    KERNEL(layer_norm_##type, IMAGE_THREADS, 2, LayerNorm, layer_norm<Type>)                   \
    KERNEL(finish_##type, IMAGE_THREADS, 4, Finish, finish<Type, NONE>)                        \
    KERNEL(finish_gelu_##type, IMAGE_THREADS, 4, Finish, finish<Type, GELU>)                   \
    KERNEL(finish_geglu_##type, IMAGE_THREADS, 4, Finish, finish<Type, GEGLU>)

#ifdef PINION_BF16
IMAGE(bf16, Bf16)
#endif
IMAGE(f16, F16)
IMAGE(f32, F32)
KERNEL(columns_16, IMAGE_THREADS, 4, Columns, columns<uint4>)
KERNEL(columns_2, IMAGE_THREADS, 4, Columns, columns<uint16_t>)
