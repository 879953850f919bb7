/* A simulated libnvidia-ml.so.1: the part of NVML that smelt-gpu calls, for
 * cards that are not there. Heat follows one resistance and one capacity;
 * time runs about fifty times faster than in a real heat sink. */
#include "sim.h"

typedef int nvmlReturn_t;
enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, GPU_IS_LOST = 15 };

typedef struct { char busIdLegacy[16]; unsigned domain, bus, device, pciDeviceId, pciSubSystemId; char busId[32]; } nvmlPciInfo_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef void *nvmlDevice_t;

static int started;

#define AMBIENT 27.0
#define IDLE_W 25.0
#define LOAD_W 320.0
#define SLOWDOWN 93.0
#define SHUTDOWN 98.0
#define TAU 2.0 /* seconds */

static int fault(int i, const char *name) { return strcmp(sim_cards[i].fault, name) == 0; }

static nvmlReturn_t look(nvmlDevice_t d, int *i)
{
	if (!started)
		return UNINITIALIZED;
	*i = (int)(intptr_t)d - 1;
	if (*i < 0 || *i >= sim_count)
		return INVALID_ARGUMENT;
	return sim_states[*i].lost ? GPU_IS_LOST : OK;
}

static int busy(int i) { return sim_now() < sim_states[i].busy_until; }

static double watts(int i)
{
	if (!busy(i))
		return IDLE_W;
	/* A card over its slowdown temperature halves its clock. */
	double w = sim_states[i].temp >= SLOWDOWN ? LOAD_W / 2 : LOAD_W;
	double limit = sim_states[i].limit / 1000.0;
	return limit > 0 && limit < w ? limit : w;
}

static double heat(int i)
{
	struct sim_state *s = &sim_states[i];
	int64_t now = sim_now();
	if (s->looked == 0) {
		s->looked = now;
		s->temp = AMBIENT + 8 + i % 3;
	}
	double dt = (double)(now - s->looked) / 1e9;
	s->looked = now;
	double r = fault(i, "hot") ? 0.45 : 0.13 + 0.005 * (i % 4); /* degrees per watt to the air */
	double goal = AMBIENT + r * watts(i);
	/* Small steps keep the model stable however rarely it is asked. */
	while (dt > 0) {
		double step = dt < 0.1 ? dt : 0.1;
		s->temp += (goal - s->temp) * step / TAU;
		dt -= step;
		if (goal - s->temp < 0.01 && s->temp - goal < 0.01)
			break;
	}
	if (s->temp > SHUTDOWN + 4)
		s->temp = SHUTDOWN + 4;
	return s->temp;
}

nvmlReturn_t nvmlInit_v2(void) { sim_load(); started = 1; return OK; }
nvmlReturn_t nvmlInitWithFlags(unsigned f) { (void)f; return nvmlInit_v2(); }
nvmlReturn_t nvmlShutdown(void) { started = 0; return OK; }

const char *nvmlErrorString(nvmlReturn_t r)
{
	switch (r) {
	case OK: return "Success";
	case UNINITIALIZED: return "Uninitialized";
	case INVALID_ARGUMENT: return "Invalid Argument";
	case NOT_SUPPORTED: return "Not Supported";
	case NOT_FOUND: return "Not Found";
	case GPU_IS_LOST: return "GPU is lost";
	}
	return "Unknown Error";
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *v, unsigned n) { snprintf(v, n, "550.163.01-simulated"); return OK; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *n) { *n = (unsigned)sim_load(); return started ? OK : UNINITIALIZED; }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned i, nvmlDevice_t *d)
{
	if (!started)
		return UNINITIALIZED;
	if ((int)i >= sim_count)
		return INVALID_ARGUMENT;
	*d = (nvmlDevice_t)(intptr_t)(i + 1);
	return sim_states[i].lost ? GPU_IS_LOST : OK;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *pci, nvmlDevice_t *d)
{
	int i = sim_find(pci);
	if (i < 0)
		return NOT_FOUND;
	return nvmlDeviceGetHandleByIndex_v2((unsigned)i, d);
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t d, nvmlPciInfo_t *p)
{
	int i;
	nvmlReturn_t r = look(d, &i);
	if (r != OK)
		return r;
	unsigned fn = 0;
	memset(p, 0, sizeof *p);
	if (sscanf(sim_cards[i].pci, "%x:%x:%x.%x", &p->domain, &p->bus, &p->device, &fn) != 4)
		return INVALID_ARGUMENT;
	snprintf(p->busId, sizeof p->busId, "%08X:%02X:%02X.%X", p->domain, p->bus, p->device, fn);
	snprintf(p->busIdLegacy, sizeof p->busIdLegacy, "%04X:%02X:%02X.%X", p->domain & 0xffff, p->bus & 0xff, p->device & 0x1f, fn & 7);
	return OK;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t d, char *s, unsigned n)
{
	int i;
	nvmlReturn_t r = look(d, &i);
	if (r == OK)
		snprintf(s, n, "%s", sim_cards[i].model);
	return r;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *s, unsigned n)
{
	int i;
	nvmlReturn_t r = look(d, &i);
	if (r == OK)
		snprintf(s, n, "%s", sim_cards[i].uuid);
	return r;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t d, nvmlMemory_t *m)
{
	int i;
	nvmlReturn_t r = look(d, &i);
	if (r == OK) {
		m->total = sim_cards[i].vram;
		m->used = m->total / 64;
		m->free = m->total - m->used;
	}
	return r;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t d, int sensor, unsigned *t)
{
	int i;
	nvmlReturn_t r = look(d, &i);
	if (r != OK)
		return r;
	if (sensor != 0)
		return INVALID_ARGUMENT;
	*t = (unsigned)(heat(i) + 0.5);
	return OK;
}

/* An RTX 3090 allows 100 to 366 W and has 350 by default. */
nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t d, unsigned *mw)
{
	int i;
	nvmlReturn_t r = look(d, &i);
	if (r == OK)
		*mw = 350000;
	return r;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t d, unsigned *low, unsigned *high)
{
	int i;
	nvmlReturn_t r = look(d, &i);
	if (r == OK) {
		*low = 100000;
		*high = 366000;
	}
	return r;
}

nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t d, unsigned mw)
{
	int i;
	nvmlReturn_t r = look(d, &i);
	if (r != OK)
		return r;
	if (mw < 100000 || mw > 366000)
		return INVALID_ARGUMENT;
	if (!fault(i, "limit")) /* said ok, and did not */
		sim_states[i].limit = mw;
	return OK;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t d, unsigned *mw)
{
	int i;
	nvmlReturn_t r = look(d, &i);
	if (r == OK)
		*mw = sim_states[i].limit ? sim_states[i].limit : 350000;
	return r;
}

#ifndef SIM_OLD_DRIVER /* what an old driver lacks; a test builds it so */
nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t d, int kind, unsigned *t)
{
	int i;
	nvmlReturn_t r = look(d, &i);
	if (r != OK)
		return r;
	if (kind == 0)
		*t = SHUTDOWN;
	else if (kind == 1)
		*t = SLOWDOWN;
	else
		return NOT_SUPPORTED;
	return OK;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t d, unsigned *mw)
{
	int i;
	nvmlReturn_t r = look(d, &i);
	if (r == OK)
		*mw = (unsigned)(watts(i) * 1000);
	return r;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t d, int kind, unsigned *mhz)
{
	int i;
	nvmlReturn_t r = look(d, &i);
	if (r != OK)
		return r;
	switch (kind) {
	case 1: /* SM */
		*mhz = !busy(i) ? 210 : sim_states[i].temp >= SLOWDOWN ? 840 : 1695;
		return OK;
	case 2: /* memory */
		*mhz = busy(i) ? 9751 : 405;
		return OK;
	}
	return NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t d, unsigned long long *why)
{
	int i;
	nvmlReturn_t r = look(d, &i);
	if (r == OK)
		*why = busy(i) ? (sim_states[i].temp >= SLOWDOWN ? 0x48 : 0) : 1;
	return r;
}
#endif
