/* A CPU without what it has: preloaded, this answers the CPUID instruction without the features that CPU_WITHOUT names.

   Linux can have the instruction fault (arch_prctl ARCH_SET_CPUID, where /proc/cpuinfo says cpuid_fault); each thread then
   asks with it on and takes bits off. So programs that choose their kernels by CPUID, ours and others, run as on such a
   CPU. CPU_WITHOUT=amx, or avx512, which takes AMX away too.

       cc -O2 -shared -fPIC -o mask_cpu.so tools/mask_cpu.c && CPU_WITHOUT=avx512 LD_PRELOAD=./mask_cpu.so PROGRAM */

#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { SET_CPUID = 0x1012 };

static int without_avx512;

static void set(int enabled) {
    if (syscall(SYS_arch_prctl, SET_CPUID, enabled) != 0) {
        static const char message[] = "mask_cpu: this CPU or system cannot make CPUID fault\n";
        (void)!write(2, message, sizeof message - 1);
        _exit(1);
    }
}

static unsigned bits(const int *from, int count) {
    unsigned mask = 0;
    for (int i = 0; i < count; i++) mask |= 1u << from[i];
    return mask;
}

#define BITS(...) bits((const int[]){__VA_ARGS__}, sizeof((const int[]){__VA_ARGS__}) / sizeof(int))

/* Intel's manual, volume 2A, CPUID, leaf 7. */
static void mask(unsigned leaf, unsigned subleaf, unsigned r[4]) {
    if (leaf != 7) return;
    if (subleaf == 0) {
        r[3] &= ~BITS(22, 24, 25); /* AMX-BF16, AMX-TILE, AMX-INT8 */
        if (without_avx512) {
            r[1] &= ~BITS(16, 17, 21, 26, 27, 28, 30, 31); /* F, DQ, IFMA, PF, ER, CD, BW, VL */
            r[2] &= ~BITS(1, 6, 11, 12, 14);               /* VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
            r[3] &= ~BITS(2, 3, 8, 23);                    /* 4VNNIW, 4FMAPS, VP2INTERSECT, FP16 */
        }
    } else if (subleaf == 1) {
        r[0] &= ~BITS(21); /* AMX-FP16 */
        r[3] &= ~BITS(8);  /* AMX-COMPLEX */
        if (without_avx512) {
            r[0] &= ~BITS(4, 5, 23); /* AVX-VNNI, AVX512-BF16, AVX-IFMA */
            r[3] &= ~BITS(4, 5);     /* AVX-VNNI-INT8, AVX-NE-CONVERT */
        }
    }
}

static void answer(int number, siginfo_t *info, void *context) {
    (void)info;
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *at = (const uint8_t *)regs[REG_RIP];
    if (at[0] != 0x0f || at[1] != 0xa2) {
        signal(number, SIG_DFL); /* Another fault: it comes again, and ends the program. */
        return;
    }
    unsigned leaf = (unsigned)regs[REG_RAX], subleaf = (unsigned)regs[REG_RCX], r[4];
    set(1);
    __cpuid_count(leaf, subleaf, r[0], r[1], r[2], r[3]);
    set(0);
    mask(leaf, subleaf, r);
    regs[REG_RAX] = r[0], regs[REG_RBX] = r[1], regs[REG_RCX] = r[2], regs[REG_RDX] = r[3];
    regs[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
    const char *without = getenv("CPU_WITHOUT");
    if (!without || (strcmp(without, "amx") != 0 && strcmp(without, "avx512") != 0)) {
        fprintf(stderr, "mask_cpu: CPU_WITHOUT is %s: expected amx or avx512\n", without ? without : "not set");
        _exit(1);
    }
    without_avx512 = strcmp(without, "avx512") == 0;
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    set(0); /* Threads inherit it. */
}
