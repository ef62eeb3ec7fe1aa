/* SPDX-License-Identifier: MIT */
/* The clock of all deadlines: CLOCK_MONOTONIC, in nanoseconds. */
#include <time.h>

#include "internal.h"

int64_t rtl_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * RTL_NS_PER_SECOND + now.tv_nsec;
}

struct __kernel_timespec rtl_timespec(int64_t ns)
{
	return (struct __kernel_timespec){
		.tv_sec = ns / RTL_NS_PER_SECOND,
		.tv_nsec = ns % RTL_NS_PER_SECOND,
	};
}
