/* SPDX-License-Identifier: MIT */
/*
 * The receive pool: memory for what comes, which a receive gets only when
 * something has come. So a receive that waits holds none.
 *
 * A buffer is either the kernel's, or lent to the caller: from the event that
 * names it until the next rtl_reap() or rtl_submit(). What gives it back to the
 * kernel is the backend.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

void *rtl_map_pages(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

void rtl_unmap_pages(void *p, size_t len)
{
	if (p)
		munmap(p, len);
}

int rtl_pool_init(struct rtl_ring *r, unsigned int buffers,
		  unsigned int buffer_size)
{
	r->stats.buffers = buffers;
	r->stats.buffer_size = buffer_size;
	r->pool = rtl_map_pages((size_t)buffers * buffer_size);
	r->trash = rtl_map_pages(RTL_TRASH_SIZE);
	r->lent = calloc(buffers, sizeof(*r->lent));
	if (r->pool && r->trash && r->lent)
		return 0;
	rtl_pool_exit(r);
	return -ENOMEM;
}

void rtl_pool_exit(struct rtl_ring *r)
{
	rtl_unmap_pages(r->pool,
			(size_t)(r->stats.buffers * r->stats.buffer_size));
	rtl_unmap_pages(r->trash, RTL_TRASH_SIZE);
	free(r->lent);
	r->pool = NULL;
	r->trash = NULL;
	r->lent = NULL;
}

void rtl_pool_lend(struct rtl_ring *r, uint16_t buffer)
{
	r->lent[r->lent_len++] = buffer;
}
