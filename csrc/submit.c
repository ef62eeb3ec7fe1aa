/* SPDX-License-Identifier: MIT */
/* Handing requests to the kernel. */
#include "internal.h"

/*
 * If all that found the pool dry went on at once, most would do so in vain,
 * again and again. So no more do than can count on a buffer.
 */
int rtl_submit(struct rtl_ring *r)
{
	r->backend->give_back(r);
	rtl_queue_waiting(r, (r->stats.buffers + 1) / 2);
	return r->backend->submit(r);
}
