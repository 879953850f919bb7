/* What the two simulated NVIDIA libraries share: the cards, read from the file
 * that SMELT_SIM_CARDS names (one a line: pci|model|uuid|vram bytes|fault), and
 * the state of each card, in that file's name + ".state", mapped by every
 * process of a run, since one process may lose a card and another one asks.
 *
 * Faults: lost   falls off the bus after some launches
 *         vram   three stuck bits
 *         hot    dead fan: the temperature runs away under load
 *         compute  wrong results on one multiprocessor
 *         hang   a launch never returns
 *         crash  a launch ends the process
 *         vanish the card falls off the bus and its launch never returns
 */
#ifndef SMELT_SIM_H
#define SMELT_SIM_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define SIM_MAX 32

struct sim_state {
	volatile int32_t lost;
	volatile int32_t launches;
	volatile int64_t busy_until; /* ns, CLOCK_MONOTONIC */
	volatile int64_t looked;     /* when temp was last brought forward */
	volatile double temp;
	volatile uint32_t limit; /* mW; 0 is the default */
};

struct sim_card {
	char pci[32], model[96], uuid[64], fault[16];
	uint64_t vram;
};

static struct sim_card sim_cards[SIM_MAX];
static struct sim_state *sim_states;
static int sim_count = -1;

#ifndef SIM_UNLABELLED /* a test builds it so, to stand for NVIDIA's own */
/* Every result made with a library that has this symbol is a simulated one. */
__attribute__((visibility("default"))) const int smeltSimulated = 1;
#endif

static int64_t sim_now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void sim_field(char *to, size_t n, char **rest)
{
	char *f = strsep(rest, "|\n");
	snprintf(to, n, "%s", f ? f : "");
}

static int sim_load(void)
{
	if (sim_count >= 0)
		return sim_count;
	sim_count = 0;
	const char *path = getenv("SMELT_SIM_CARDS");
	FILE *f = path ? fopen(path, "r") : NULL;
	if (!f)
		return 0;
	char line[512];
	while (sim_count < SIM_MAX && fgets(line, sizeof line, f)) {
		struct sim_card *c = &sim_cards[sim_count];
		char *rest = line, vram[32];
		sim_field(c->pci, sizeof c->pci, &rest);
		sim_field(c->model, sizeof c->model, &rest);
		sim_field(c->uuid, sizeof c->uuid, &rest);
		sim_field(vram, sizeof vram, &rest);
		sim_field(c->fault, sizeof c->fault, &rest);
		c->vram = strtoull(vram, NULL, 10);
		if (c->pci[0])
			sim_count++;
	}
	fclose(f);
	char name[4096];
	snprintf(name, sizeof name, "%s.state", path);
	int fd = open(name, O_RDWR | O_CREAT, 0600);
	size_t size = sizeof(struct sim_state) * SIM_MAX;
	void *m = MAP_FAILED;
	if (fd >= 0 && ftruncate(fd, (off_t)size) == 0)
		m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (m == MAP_FAILED)
		sim_count = 0; /* no state, no cards */
	else
		sim_states = m;
	if (fd >= 0)
		close(fd);
	return sim_count;
}

/* sim_find takes "0000:01:00.0" and "00000000:01:00.0". */
static int sim_find(const char *pci)
{
	size_t n = strlen(pci);
	for (int i = 0; i < sim_load(); i++) {
		size_t m = strlen(sim_cards[i].pci);
		if (n >= m && strcasecmp(pci + n - m, sim_cards[i].pci) == 0)
			return i;
	}
	return -1;
}

#endif
