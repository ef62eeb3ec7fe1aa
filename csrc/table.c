/* SPDX-License-Identifier: MIT */
/*
 * The table of requests: by id, for the CQEs, and by fd, for closing.
 *
 * Ids are consecutive, so id & mask is a near perfect hash: a probe is longer
 * than one step only where a long-lived request is in the way.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "internal.h"

#define FIRST_TABLE_SIZE 256u
#define FIRST_FDS 64u

int rtl_table_init(struct rtl_ring *r)
{
	r->table = calloc(FIRST_TABLE_SIZE, sizeof(struct rtl_request *));
	r->fds = calloc(FIRST_FDS, sizeof(*r->fds));
	if (!r->table || !r->fds) {
		rtl_table_exit(r);
		return -ENOMEM;
	}
	r->table_size = FIRST_TABLE_SIZE;
	r->fds_size = FIRST_FDS;
	return 0;
}

void rtl_table_exit(struct rtl_ring *r)
{
	free(r->table);
	free(r->fds);
	r->table = NULL;
	r->fds = NULL;
}

static size_t home_of(size_t size, uint64_t id)
{
	return (size_t)id & (size - 1);
}

static void place(struct rtl_request **table, size_t size,
		  struct rtl_request *req)
{
	size_t i = home_of(size, req->id);

	while (table[i])
		i = (i + 1) & (size - 1);
	table[i] = req;
}

static int grow_table(struct rtl_ring *r)
{
	size_t size = r->table_size * 2;
	struct rtl_request **table;

	table = calloc(size, sizeof(struct rtl_request *));
	if (!table)
		return -ENOMEM;
	for (size_t i = 0; i < r->table_size; i++)
		if (r->table[i])
			place(table, size, r->table[i]);
	free(r->table);
	r->table = table;
	r->table_size = size;
	return 0;
}

/* The links into fds[] point at its cells: mend them when it moves. */
static int grow_fds(struct rtl_ring *r, int fd)
{
	size_t size = r->fds_size;
	struct rtl_fd *fds;

	while (size <= (size_t)fd)
		size *= 2;
	fds = calloc(size, sizeof(*fds));
	if (!fds)
		return -ENOMEM;
	for (size_t i = 0; i < r->fds_size; i++) {
		fds[i] = r->fds[i];
		if (fds[i].requests)
			fds[i].requests->fd_link = &fds[i].requests;
	}
	free(r->fds);
	r->fds = fds;
	r->fds_size = size;
	return 0;
}

/* fds[] grows for descriptors that exist, so their limit is its limit. */
static int make_room(struct rtl_ring *r, int fd)
{
	int error;

	if (fd < 0)
		return -EBADF;
	if ((r->stats.in_flight + 1) * 2 > r->table_size) {
		error = grow_table(r);
		if (error)
			return error;
	}
	if ((size_t)fd < r->fds_size)
		return 0;
	return fcntl(fd, F_GETFD) < 0 ? -errno : grow_fds(r, fd);
}

int rtl_table_add(struct rtl_ring *r, uint64_t id,
		  const struct rtl_operation *op, int fd,
		  struct rtl_request **out)
{
	struct rtl_request *req;
	int error = make_room(r, fd);

	if (error)
		return error;
	req = calloc(1, sizeof(*req));
	if (!req)
		return -ENOMEM;
	req->id = id;
	req->op = op;
	req->fd = fd;
	req->awaits = op->awaits;
	req->fd_next = r->fds[fd].requests;
	req->fd_link = &r->fds[fd].requests;
	if (req->fd_next)
		req->fd_next->fd_link = &req->fd_next;
	r->fds[fd].requests = req;
	r->fds[fd].minding += !!op->fd_changed;
	place(r->table, r->table_size, req);
	r->stats.in_flight++;
	*out = req;
	return 0;
}

static size_t cell_of(const struct rtl_ring *r, uint64_t id)
{
	size_t i = home_of(r->table_size, id);

	while (r->table[i] && r->table[i]->id != id)
		i = (i + 1) & (r->table_size - 1);
	return i;
}

struct rtl_request *rtl_table_find(const struct rtl_ring *r, uint64_t id)
{
	return r->table[cell_of(r, id)];
}

/* Close the gap at cell i so that no probe ends there too early. */
static void close_gap(struct rtl_ring *r, size_t i)
{
	size_t mask = r->table_size - 1;
	size_t j = i;

	for (;;) {
		size_t home;

		r->table[i] = NULL;
		do {
			j = (j + 1) & mask;
			if (!r->table[j])
				return;
			home = home_of(r->table_size, r->table[j]->id);
		} while (((j - home) & mask) < ((j - i) & mask));
		r->table[i] = r->table[j];
		i = j;
	}
}

void rtl_table_remove(struct rtl_ring *r, struct rtl_request *req)
{
	*req->fd_link = req->fd_next;
	if (req->fd_next)
		req->fd_next->fd_link = req->fd_link;
	r->fds[req->fd].minding -= !!req->op->fd_changed;
	close_gap(r, cell_of(r, req->id));
	r->stats.in_flight--;
	free(req);
}
