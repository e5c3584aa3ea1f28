/* A driver for tests: tells what the environment says, with a real driver's functions and codes, and does nothing.
 *   FAKE_CUDA_VERSION       as cuDriverGetVersion counts, e.g. 13000
 *   FAKE_CUDA_CAPABILITIES  one GPU each, e.g. "75 90"
 *   FAKE_CUDA_INIT          a code that cuInit answers with, or crash, or hang
 * CUDA_VISIBLE_DEVICES hides every GPU where it is empty, as it does with a real one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_DEVICE = 101 };
enum { MAJOR = 75, MINOR = 76 };
static const size_t TOTAL_BYTES = (size_t)16 << 30, FREE_BYTES = (size_t)15 << 30;

static const char *word(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/* Of the GPU with this number, or -1 behind the last. */
static int capability(int number) {
    const char *rest = word("FAKE_CUDA_CAPABILITIES");
    for (char *end; ; rest = end, number--) {
        long value = strtol(rest, &end, 10);
        if (end == rest) return -1;
        if (number == 0) return (int)value;
    }
}

int cuDriverGetVersion(int *version) {
    *version = atoi(word("FAKE_CUDA_VERSION"));
    return SUCCESS;
}

int cuInit(unsigned flags) {
    const char *init = word("FAKE_CUDA_INIT"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (flags != 0) return INVALID_VALUE;
    if (strcmp(init, "crash") == 0) abort();
    while (strcmp(init, "hang") == 0) pause();
    if (visible && !*visible) return NO_DEVICE;
    return atoi(init);
}

int cuDeviceGetCount(int *count) {
    for (*count = 0; capability(*count) >= 0;) ++*count;
    return SUCCESS;
}

int cuDeviceGet(int *device, int number) {
    *device = number;
    return capability(number) < 0 ? INVALID_DEVICE : SUCCESS;
}

int cuDeviceGetName(char *name, int bytes, int device) {
    snprintf(name, bytes, "Testing GPU %d", device);
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    *bytes = TOTAL_BYTES;
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int both = capability(device);
    if (attribute != MAJOR && attribute != MINOR) return INVALID_VALUE;
    *value = attribute == MAJOR ? both / 10 : both % 10;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    *context = context;
    return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
    (void)context;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    return SUCCESS;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    *free_bytes = FREE_BYTES;
    *total_bytes = TOTAL_BYTES;
    return SUCCESS;
}

int cuGetErrorName(int code, const char **name) {
    switch (code) {
    case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; return SUCCESS;
    case 803: *name = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"; return SUCCESS;
    default: *name = NULL; return INVALID_VALUE;
    }
}
