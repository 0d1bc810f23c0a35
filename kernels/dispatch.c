/* kernels/dispatch.c: which of the compiled kernels this machine runs. The only code that asks what the
 * processor can do. */
#include "kernels/kernels.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/tune.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

/* Each kernels_*.o that is linked in defines one of these; what a build leaves out stays NULL. */
__attribute__((weak)) const Kernels *kernels_amx, *kernels_avx512, *kernels_avxvnni, *kernels_avx2,
    *kernels_neon;
extern const Kernels *kernels_portable;

static bool has_avx2(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); /* F16C is older than AVX2 */
#else
    return false;
#endif
}

static bool has_avxvnni(void) {
#if defined(__x86_64__)
    unsigned a, b, c, d; /* leaf 7.1, EAX bit 4: older compilers have no name for it */
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#else
    return false;
#endif
}

static bool has_avx512(void) {
#if defined(__x86_64__)
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

static bool has_amx(void) {
#if defined(__x86_64__) && defined(__linux__)
    /* Tile registers are large, so Linux gives them to those alone who ask. */
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned a, b, c,
        d; /* leaf 7, EDX bits 24 (tiles) and 25 (int8): older compilers have no names for them */
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 3) == 3 &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

static bool has_neon_dot(void) {
#if defined(__aarch64__) && defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__aarch64__) && defined(__APPLE__)
    return true;
#else
    return false;
#endif
}

static bool always(void) { return true; }

static const struct {
    const Kernels **kernels;
    bool (*runs_here)(void);
} CHOICES[] = {
    /* fastest first */
    {&kernels_amx, has_amx},   {&kernels_avx512, has_avx512}, {&kernels_avxvnni, has_avxvnni},
    {&kernels_avx2, has_avx2}, {&kernels_neon, has_neon_dot}, {&kernels_portable, always},
};

const Kernels *kernels_choose(const char **why) {
    static char error[256];
    const char *isa = getenv("MLA_ISA");
    isa = isa && *isa ? isa : NULL; /* empty means unset */
    bool built = false;
    for (size_t i = 0; i < sizeof CHOICES / sizeof *CHOICES; i++) {
        const Kernels *ops = *CHOICES[i].kernels;
        if (!ops || (isa && strcmp(isa, ops->name) != 0))
            continue;
        if (CHOICES[i].runs_here()) {
            tune(ops);
            return ops;
        }
        built = true;
    }
    if (built)
        snprintf(error, sizeof error, "MLA_ISA=%.32s: this machine cannot run it; leave MLA_ISA unset", isa);
    else
        snprintf(error, sizeof error, "MLA_ISA=%.32s: unknown; this program was built with: %s", isa, ISAS);
    *why = error;
    return NULL;
}
