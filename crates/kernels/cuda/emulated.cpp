// What the tests call: the kernels of this folder by name, on the CPU.
#include "emulate.h"

/// None if it ran; else what went wrong, until the next call of this thread. Addresses in `params` are the host's.
extern "C" const char* pinion_emulate(const char* name, uint32_t x, uint32_t y, uint32_t z, uint32_t threads, uint64_t shared,
                                      const void* params, uint64_t bytes, uint64_t seed) {
    return emulate::launch(name, Dim3{x, y, z}, threads, shared, params, bytes, seed);
}
