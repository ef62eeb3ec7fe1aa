/* SPDX-License-Identifier: MIT */
/*
 * The receive pool: a ring of buffers provided to the kernel, which takes one
 * when data has come. So a receive that waits holds no memory.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

static void *map_pages(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void unmap_pages(void *p, size_t len)
{
	if (p)
		munmap(p, len);
}

static void provide(struct rtl_ring *r, unsigned int bid, int offset)
{
	size_t size = (size_t)r->stats.buffer_size;

	io_uring_buf_ring_add(r->buf_ring, r->pool + bid * size,
			      (unsigned int)size, (unsigned short)bid,
			      io_uring_buf_ring_mask((__u32)r->stats.buffers),
			      offset);
}

int rtl_pool_init(struct rtl_ring *r, unsigned int buffers,
		  unsigned int buffer_size)
{
	struct io_uring_buf_reg reg = { 0 };
	int ret;

	r->stats.buffers = buffers;
	r->stats.buffer_size = buffer_size;
	r->buf_ring = map_pages(buffers * sizeof(struct io_uring_buf));
	r->pool = map_pages((size_t)buffers * buffer_size);
	r->trash = map_pages(RTL_TRASH_SIZE);
	r->lent = calloc(buffers, sizeof(*r->lent));
	if (!r->buf_ring || !r->pool || !r->trash || !r->lent) {
		rtl_pool_exit(r);
		return -ENOMEM;
	}
	io_uring_buf_ring_init(r->buf_ring);
	reg.ring_addr = (unsigned long)(uintptr_t)r->buf_ring;
	reg.ring_entries = buffers;
	ret = io_uring_register_buf_ring(&r->uring, &reg, 0);
	if (ret) {
		rtl_pool_exit(r);
		return ret;
	}
	for (unsigned int i = 0; i < buffers; i++)
		provide(r, i, (int)i);
	io_uring_buf_ring_advance(r->buf_ring, (int)buffers);
	return 0;
}

void rtl_pool_exit(struct rtl_ring *r)
{
	unmap_pages(r->buf_ring, r->stats.buffers * sizeof(struct io_uring_buf));
	unmap_pages(r->pool, (size_t)(r->stats.buffers * r->stats.buffer_size));
	unmap_pages(r->trash, RTL_TRASH_SIZE);
	free(r->lent);
	r->buf_ring = NULL;
	r->pool = NULL;
	r->trash = NULL;
	r->lent = NULL;
}

void rtl_pool_lend(struct rtl_ring *r, uint16_t bid)
{
	r->lent[r->lent_len++] = bid;
}

void rtl_pool_take_back(struct rtl_ring *r)
{
	if (!r->lent_len)
		return;
	for (unsigned int i = 0; i < r->lent_len; i++)
		provide(r, r->lent[i], (int)i);
	io_uring_buf_ring_advance(r->buf_ring, (int)r->lent_len);
	r->lent_len = 0;
}
