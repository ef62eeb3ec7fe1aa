/* SPDX-License-Identifier: MIT */
/* Numbers that a seed decides (splitmix64). */
#ifndef RANDOM_H
#define RANDOM_H

#include <stdbool.h>
#include <stdint.h>

struct random {
	uint64_t state;
};

static inline void random_start(struct random *r, uint64_t seed)
{
	r->state = seed;
}

static inline uint64_t random_next(struct random *r)
{
	uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* From 0 to n - 1. */
static inline unsigned int below(struct random *r, unsigned int n)
{
	return (unsigned int)(random_next(r) % n);
}

static inline bool one_in(struct random *r, unsigned int n)
{
	return below(r, n) == 0;
}

#endif
