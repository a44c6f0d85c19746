/* The part of the CUDA driver that compiling a Mosaic GPU kernel touches, for machines without one.
 *
 * JAX's CUDA plugin loads libcuda.so.1 when it runs, asks it what to compile for, and hands it the
 * machine code. This one answers for a Hopper GPU, accepts all code, and prints how much shared
 * memory the kernel asks for, which no log of the compiler tells: it is allocated at the launch.
 * Nothing here can run a kernel.
 */

#include <stdio.h>

/* The values of cuda.h, which is not needed to build this file. */
enum { COMPUTE_CAPABILITY_MAJOR = 75, COMPUTE_CAPABILITY_MINOR = 76 };  /* CUdevice_attribute */
enum { MAX_DYNAMIC_SHARED_SIZE_BYTES = 8 };                             /* CUfunction_attribute */
enum { SUCCESS = 0, ERROR_INVALID_VALUE = 1 };                          /* CUresult */

int cuCtxGetDevice(int *device) {
  *device = 0;
  return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case COMPUTE_CAPABILITY_MAJOR: *value = 9; return SUCCESS;
    case COMPUTE_CAPABILITY_MINOR: *value = 0; return SUCCESS;
    default: return ERROR_INVALID_VALUE;
  }
}

/* A module and a function are only ever handed back to this library, but must not be null. */
int cuModuleLoadData(void **module, const void *image) {
  *module = (void *)image;
  return SUCCESS;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = module;
  return SUCCESS;
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
  if (attribute == MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    printf("dynamic shared memory: %d bytes\n", value);
    fflush(stdout);
  }
  return SUCCESS;
}
