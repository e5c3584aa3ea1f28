// The kernels on rows, for every type and format.
#include "rows.cuh"
#include "choose.cuh"

#define FORMATS(type, Type)                                      \
    FORMAT(plain, type, Plain, Type) FORMAT(q8_0, type, Q8_0, Type) FORMAT(q4_0, type, Q4_0, Type) \
    FORMAT(q4_1, type, Q4_1, Type) FORMAT(int8, type, Int8, Type) FORMAT(fp8, type, Fp8, Type)
#define FORMAT(format, type, Format, Type)                                        \
    KERNEL(embed_##format##_##type, ROW_THREADS, 4, Embed, embed<Type, Format>)    \
    KERNEL(unpack_##format##_##type, ROW_THREADS, 4, Unpack, unpack<Type, Format>)
#define ROWS(type, Type)                                   \
    FORMATS(type, Type)                                    \
    KERNEL(norm_##type, NORM_THREADS, 4, Norm, norm<Type>)    \
    KERNEL(place_##type, ROW_THREADS, 4, Place, place<Type>)  \
    KERNEL(swiglu_##type, ROW_THREADS, 4, Swiglu, swiglu<Type>)

#ifdef PINION_BF16
ROWS(bf16, Bf16)
#endif
ROWS(f16, F16)
KERNEL(choose_rows, CHOOSE_THREADS, 1, Choose, choose)
