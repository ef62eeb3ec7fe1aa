/* SPDX-License-Identifier: MIT */
/*
 * The receive pool: memory for what comes, which a receive gets only when
 * something has come. So a receive that waits holds none.
 *
 * A buffer is free, or lent to the caller: from the event that names it until
 * the next rtl_reap() or rtl_submit(). With io_uring the free ones are the
 * kernel's, which takes them by itself. With epoll they are in a stack, so that
 * the one that was used last, which the cache has, is used next.
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
	r->free = calloc(buffers, sizeof(*r->free));
	if (r->pool && r->trash && r->lent && r->free)
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
	free(r->free);
	r->pool = NULL;
	r->trash = NULL;
	r->lent = NULL;
	r->free = NULL;
}

void rtl_pool_lend(struct rtl_ring *r, uint16_t buffer)
{
	r->lent[r->lent_len++] = buffer;
}

/* epoll: a free buffer, or RTL_NO_BUFFER. */
int rtl_pool_take(struct rtl_ring *r)
{
	return r->free_len ? r->free[--r->free_len] : RTL_NO_BUFFER;
}

void rtl_pool_put(struct rtl_ring *r, uint16_t buffer)
{
	r->free[r->free_len++] = buffer;
}
