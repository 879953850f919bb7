/* A simulated libcuda.so.1: the part of the CUDA driver API that smelt-gpu
 * calls. Kernels are known by name and run on the processor, over a few MiB of
 * ordinary memory whatever size the card claims. */
#include "sim.h"

#include <math.h>

typedef int CUresult;
typedef uint64_t CUdeviceptr;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_PTX = 218, NOT_FOUND = 500, UNKNOWN = 999 };

#define BACKING (8u << 20) /* bytes of memory a card really has */
#define SMS 2
#define BUSY_NS 700000000 /* a launch counts as load this long */

enum { FILL = 1, CHECK, CHAIN };

static int inited, current = -1;
static uint64_t used;
static struct { uint64_t ptr, size; } blocks[64];

static int fault(const char *name) { return strcmp(sim_cards[current].fault, name) == 0; }

CUresult cuInit(unsigned flags)
{
	(void)flags;
	if (sim_load() == 0)
		return NO_DEVICE;
	inited = 1;
	return OK;
}

CUresult cuDriverGetVersion(int *v) { *v = 12040; return OK; }

CUresult cuGetErrorName(CUresult r, const char **s)
{
	switch (r) {
	case INVALID_VALUE: *s = "CUDA_ERROR_INVALID_VALUE"; return OK;
	case OUT_OF_MEMORY: *s = "CUDA_ERROR_OUT_OF_MEMORY"; return OK;
	case NO_DEVICE: *s = "CUDA_ERROR_NO_DEVICE"; return OK;
	case INVALID_DEVICE: *s = "CUDA_ERROR_INVALID_DEVICE"; return OK;
	case INVALID_CONTEXT: *s = "CUDA_ERROR_INVALID_CONTEXT"; return OK;
	case INVALID_PTX: *s = "CUDA_ERROR_INVALID_PTX"; return OK;
	case NOT_FOUND: *s = "CUDA_ERROR_NOT_FOUND"; return OK;
	case UNKNOWN: *s = "CUDA_ERROR_UNKNOWN"; return OK;
	}
	*s = NULL;
	return INVALID_VALUE;
}

CUresult cuDeviceGetByPCIBusId(int *dev, const char *pci)
{
	if (!inited)
		return 3;
	int i = sim_find(pci);
	if (i < 0 || sim_states[i].lost)
		return INVALID_DEVICE;
	*dev = i;
	return OK;
}

CUresult cuDeviceGetAttribute(int *v, int attr, int dev)
{
	if (dev < 0 || dev >= sim_count)
		return INVALID_DEVICE;
	switch (attr) {
	case 16: *v = SMS; return OK;
	case 75: *v = 8; return OK;
	case 76: *v = 6; return OK;
	}
	return INVALID_VALUE;
}

CUresult cuDevicePrimaryCtxRetain(void **ctx, int dev)
{
	if (dev < 0 || dev >= sim_count)
		return INVALID_DEVICE;
	*ctx = (void *)(intptr_t)(dev + 1);
	return OK;
}

CUresult cuCtxSetCurrent(void *ctx)
{
	int i = (int)(intptr_t)ctx - 1;
	if (i < 0 || i >= sim_count)
		return INVALID_CONTEXT;
	current = i;
	return OK;
}

static CUresult alive(void)
{
	if (current < 0)
		return INVALID_CONTEXT;
	return sim_states[current].lost ? UNKNOWN : OK; /* sticky, as after XID 79 */
}

CUresult cuCtxSynchronize(void) { return alive(); }

CUresult cuModuleLoadDataEx(void **mod, const char *ptx, unsigned n, int *opts, void **vals)
{
	(void)n, (void)opts, (void)vals;
	if (!strstr(ptx, ".version 6.0") || !strstr(ptx, ".target sm_50"))
		return INVALID_PTX;
	*mod = (void *)ptx; /* looked at by cuModuleGetFunction before the caller lets go of it */
	return alive();
}

CUresult cuModuleGetFunction(intptr_t *fn, void *mod, const char *name)
{
	char entry[96];
	snprintf(entry, sizeof entry, ".visible .entry %s(", name);
	if (!strstr(mod, entry))
		return NOT_FOUND;
	if (strcmp(name, "vram_fill") == 0)
		*fn = FILL;
	else if (strcmp(name, "vram_check") == 0)
		*fn = CHECK;
	else if (strcmp(name, "fma_chain") == 0)
		*fn = CHAIN;
	else
		return NOT_FOUND;
	return alive();
}

CUresult cuMemGetInfo_v2(size_t *avail, size_t *total)
{
	*total = BACKING;
	*avail = BACKING - used;
	return alive();
}

CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n)
{
	CUresult r = alive();
	if (r != OK)
		return r;
	if (n == 0)
		return INVALID_VALUE;
	if (used + n > BACKING)
		return OUT_OF_MEMORY;
	for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
		if (blocks[i].ptr)
			continue;
		void *m = aligned_alloc(256, (n + 255) / 256 * 256);
		if (!m)
			return OUT_OF_MEMORY;
		blocks[i].ptr = (uint64_t)(uintptr_t)m;
		blocks[i].size = n;
		used += n;
		*p = blocks[i].ptr;
		return OK;
	}
	return OUT_OF_MEMORY;
}

/* inside: a kernel or a copy that leaves its allocation is a bug of the caller. */
static int inside(uint64_t p, uint64_t n)
{
	for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
		if (blocks[i].ptr && p >= blocks[i].ptr && p - blocks[i].ptr <= blocks[i].size && n <= blocks[i].size - (p - blocks[i].ptr))
			return 1;
	return 0;
}

CUresult cuMemFree_v2(CUdeviceptr p)
{
	for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
		if (p && blocks[i].ptr == p) {
			used -= blocks[i].size;
			blocks[i].ptr = 0;
			free((void *)(uintptr_t)p);
			return alive();
		}
	return INVALID_VALUE;
}

CUresult cuMemsetD32_v2(CUdeviceptr p, unsigned v, size_t n)
{
	if (!inside(p, 4 * n))
		return INVALID_VALUE;
	uint32_t *m = (uint32_t *)(uintptr_t)p;
	for (size_t i = 0; i < n; i++)
		m[i] = v;
	return alive();
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr p, size_t n)
{
	if (!inside(p, n))
		return INVALID_VALUE;
	memcpy(to, (void *)(uintptr_t)p, n);
	return alive();
}

static uint32_t rotl(uint32_t x, int n) { return x << n | x >> (32 - n); }

static void unit(uint64_t i, uint32_t seed, uint32_t inv, uint32_t w[4])
{
	uint32_t x = (uint32_t)i ^ seed;
	x += (uint32_t)(i >> 32) * 0x9E3779B9u;
	x ^= x >> 16;
	x *= 0x85EBCA6Bu;
	x ^= x >> 13;
	x *= 0xC2B2AE35u;
	x ^= x >> 16;
	x ^= inv;
	w[0] = x;
	w[1] = ~x;
	w[2] = rotl(x, 8);
	w[3] = rotl(~x, 16);
}

/* stuck holds three bits at one: at a quarter, a half and three quarters. */
static void stuck(uint32_t *m, uint64_t units)
{
	if (!fault("vram") || units < 1024)
		return;
	m[units / 4 * 4] |= 1u << 5;
	m[units / 2 * 4 + 2] |= 1u << 13;
	m[units / 4 * 3 * 4 + 3] |= 1u << 31;
}

static void fill(uint32_t *m, uint64_t units, uint32_t seed, uint32_t inv)
{
	for (uint64_t i = 0; i < units; i++)
		unit(i, seed, inv, m + 4 * i);
	stuck(m, units);
}

static void verify(uint32_t *m, uint64_t units, uint32_t seed, uint32_t inv, uint32_t *err)
{
	for (uint64_t i = 0; i < units; i++) {
		uint32_t want[4], *got = m + 4 * i;
		unit(i, seed, inv, want);
		if (memcmp(want, got, 16) != 0) {
			uint32_t n = err[0]++;
			int k = 0;
			while (want[k] == got[k])
				k++;
			if (n < 64) {
				uint32_t *rec = err + 2 + 6 * n;
				uint64_t at = (uint64_t)(uintptr_t)(got + k);
				memcpy(rec, &at, 8);
				rec[2] = want[k];
				rec[3] = got[k];
				rec[4] = got[k];
				rec[5] = (uint32_t)(i % SMS);
			}
		}
		for (int k = 0; k < 4; k++)
			got[k] = ~want[k];
	}
	stuck(m, units);
}

static uint32_t fold(uint32_t thread, uint32_t steps)
{
	static const float c[4] = {-1.8515625f, -1.8828125f, -1.9140625f, -1.9453125f};
	float z[4];
	uint32_t h = 0;
	for (int k = 0; k < 4; k++)
		z[k] = (float)(thread * 4 + (uint32_t)k + 1) * (1.0f / 512);
	for (uint32_t i = 0; i < steps; i += 8) {
		for (int j = 0; j < 8; j++)
			for (int k = 0; k < 4; k++)
				z[k] = fmaf(z[k], z[k], c[k]);
		for (int k = 0; k < 4; k++) {
			uint32_t b;
			memcpy(&b, &z[k], 4);
			h = rotl(h, 5) ^ b;
		}
	}
	return h;
}

static void chain(uint32_t *out, unsigned grid, unsigned threads, uint32_t steps, uint32_t reps)
{
	for (unsigned b = 0; b < grid; b++) {
		uint32_t sum = 0, sm = b % SMS;
		for (uint32_t r = 0; r < reps; r++)
			for (unsigned t = 0; t < threads; t++)
				sum += fold(t, steps);
		if (fault("compute") && sm == 1)
			sum ^= 1u << 7;
		out[2 * b] += sum;
		out[2 * b + 1] = sm;
	}
}

CUresult cuLaunchKernel(intptr_t fn, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream, void **a, void **extra)
{
	(void)shared, (void)stream, (void)extra;
	CUresult r = alive();
	if (r != OK)
		return r;
	if (gy != 1 || gz != 1 || by != 1 || bz != 1 || gx == 0 || bx == 0 || bx > 1024)
		return INVALID_VALUE;
	struct sim_state *s = &sim_states[current];
	s->launches++;
	s->busy_until = sim_now() + BUSY_NS;
	if (s->launches > 1) {
		if (fault("lost") || fault("vanish"))
			s->lost = 1;
		while (fault("hang") || fault("vanish"))
			pause();
		if (fault("crash"))
			*(volatile int *)0 = 0;
		if (s->lost)
			return UNKNOWN;
	}
	if (fn == CHAIN) {
		uint64_t out = *(uint64_t *)a[0];
		if (!inside(out, 8ull * gx))
			return INVALID_VALUE;
		chain((uint32_t *)(uintptr_t)out, gx, bx, *(uint32_t *)a[1], *(uint32_t *)a[2]);
	} else {
		uint64_t p = *(uint64_t *)a[0], units = *(uint64_t *)a[1];
		if (units > BACKING || !inside(p, units * 16))
			return INVALID_VALUE;
		if (fn == FILL) {
			fill((uint32_t *)(uintptr_t)p, units, *(uint32_t *)a[2], *(uint32_t *)a[3]);
		} else {
			uint64_t err = *(uint64_t *)a[4];
			if (!inside(err, 8 + 24 * 64))
				return INVALID_VALUE;
			verify((uint32_t *)(uintptr_t)p, units, *(uint32_t *)a[2], *(uint32_t *)a[3], (uint32_t *)(uintptr_t)err);
		}
	}
	s->busy_until = sim_now() + BUSY_NS;
	return OK;
}
