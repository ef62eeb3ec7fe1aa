/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "faults.h"
#include "play.h"
#include "random.h"

/* user_data that no request has */
#define NO_SUCH_REQUEST (UINT64_MAX >> 2)

static struct {
	struct random random;
	unsigned int one_in[FAULTS];
	unsigned int in_play[FAULTS];
	unsigned int in_call[FAULTS];
	unsigned int nth;	/* 0: by chance */
	unsigned int calls;
	uint64_t sqes_taken;
	const char *call;
} faults;

void faults_start(uint64_t seed, const unsigned int one_in[FAULTS])
{
	memset(&faults, 0, sizeof(faults));
	random_start(&faults.random, seed);
	memcpy(faults.one_in, one_in, sizeof(faults.one_in));
}

void faults_stop(void)
{
	memset(faults.one_in, 0, sizeof(faults.one_in));
	faults.nth = 0;
}

void faults_start_nth(unsigned int n)
{
	memset(&faults, 0, sizeof(faults));
	random_start(&faults.random, n);
	faults.nth = n;
}

bool faults_reached_nth(void)
{
	return faults.calls >= faults.nth;
}

unsigned int faults_in_play(enum fault fault)
{
	return faults.in_play[fault];
}

unsigned int faults_in_call(enum fault fault)
{
	return faults.in_call[fault];
}

uint64_t faults_sqes_taken(void)
{
	return faults.sqes_taken;
}

void engine_enter(const char *call)
{
	memset(faults.in_call, 0, sizeof(faults.in_call));
	faults.call = call;
}

void engine_leave(void)
{
	faults.call = NULL;
}

const char *engine_call(void)
{
	return faults.call;
}

static bool is_chosen(enum fault fault)
{
	if (faults.nth)
		return ++faults.calls == faults.nth;
	return faults.one_in[fault] &&
	       one_in(&faults.random, faults.one_in[fault]);
}

static bool fails(enum fault fault)
{
	if (!faults.call || !is_chosen(fault))
		return false;
	faults.in_play[fault]++;
	faults.in_call[fault]++;
	return true;
}

static bool runs(const char *call)
{
	return faults.call && !strcmp(faults.call, call);
}

static int any_of(const int *errors, unsigned int n)
{
	return errors[below(&faults.random, n)];
}

#define ANY_OF(...) any_of((const int[]){ __VA_ARGS__ }, \
			   sizeof((const int[]){ __VA_ARGS__ }) / sizeof(int))

int __real_close(int fd);
int __wrap_close(int fd);
int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);

/* The kernel gets to see only the first of the SQEs. */
static int submit_some(struct io_uring *ring, unsigned int ready)
{
	unsigned int hidden = 1 + below(&faults.random, ready - 1);
	int taken;

	ring->sq.sqe_tail -= hidden;
	taken = __real_io_uring_submit(ring);
	ring->sq.sqe_tail += hidden;
	return taken;
}

/*
 * What goes to the kernel: an accept or a poll for one, and cancellations, of
 * which some do not find their request and are answered by -ENOENT.
 */
static void look_through(struct io_uring_sq *sq)
{
	for (unsigned int i = *sq->khead; i != sq->sqe_tail; i++) {
		struct io_uring_sqe *sqe = &sq->sqes[i & *sq->kring_mask];

		play_sees_sqe(sqe->user_data, sqe->opcode == IORING_OP_ACCEPT);
		if (sqe->opcode == IORING_OP_ASYNC_CANCEL &&
		    fails(FAULT_CANCEL))
			sqe->addr = NO_SUCH_REQUEST;
	}
}

/* What an accept has answered becomes -EAGAIN, before the engine sees it. */
static void take_connections(struct io_uring *ring)
{
	struct io_uring_cqe *cqe;
	unsigned int head;

	io_uring_for_each_cqe(ring, head, cqe) {
		if (cqe->res < 0 || !play_is_accepting(cqe->user_data) ||
		    !fails(FAULT_ACCEPT))
			continue;
		__real_close(cqe->res);
		cqe->res = -EAGAIN;
	}
}

int __wrap_io_uring_submit(struct io_uring *ring)
{
	unsigned int ready = io_uring_sq_ready(ring);
	int taken;

	look_through(&ring->sq);

	if (fails(FAULT_ENTER))
		return ANY_OF(-EAGAIN, -EBUSY, -EINTR, -ENOMEM);
	if (ready > 1 && fails(FAULT_SHORT))
		taken = submit_some(ring, ready);
	else
		taken = __real_io_uring_submit(ring);
	if (taken > 0)
		faults.sqes_taken += (unsigned int)taken;
	take_connections(ring);
	return taken;
}

int __real_io_uring_get_events(struct io_uring *ring);
int __wrap_io_uring_get_events(struct io_uring *ring);

int __wrap_io_uring_get_events(struct io_uring *ring)
{
	int ret;

	play_sees_work_run();
	if (fails(FAULT_EVENTS))
		return ANY_OF(-EINTR, -EBUSY, -ENOMEM);
	ret = __real_io_uring_get_events(ring);
	take_connections(ring);
	return ret;
}

int __real_io_uring_wait_cqes(struct io_uring *ring, struct io_uring_cqe **cqe,
			      unsigned int n, struct __kernel_timespec *ts,
			      sigset_t *mask);
int __wrap_io_uring_wait_cqes(struct io_uring *ring, struct io_uring_cqe **cqe,
			      unsigned int n, struct __kernel_timespec *ts,
			      sigset_t *mask);

int __wrap_io_uring_wait_cqes(struct io_uring *ring, struct io_uring_cqe **cqe,
			      unsigned int n, struct __kernel_timespec *ts,
			      sigset_t *mask)
{
	if (fails(FAULT_WAIT))
		return ANY_OF(-EINTR, -EAGAIN, -ETIME);
	return __real_io_uring_wait_cqes(ring, cqe, n, ts, mask);
}

int __real_epoll_wait(int fd, struct epoll_event *events, int most,
		      int timeout);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int most,
		      int timeout);

int __wrap_epoll_wait(int fd, struct epoll_event *events, int most, int timeout)
{
	if (!timeout)
		play_sees_work_run();
	if (fails(timeout ? FAULT_WAIT : FAULT_LOOK)) {
		errno = EINTR;
		return -1;
	}
	return __real_epoll_wait(fd, events, most, timeout);
}

int __real_epoll_ctl(int fd, int what, int target, struct epoll_event *event);
int __wrap_epoll_ctl(int fd, int what, int target, struct epoll_event *event);

int __wrap_epoll_ctl(int fd, int what, int target, struct epoll_event *event)
{
	enum fault fault = runs("rtl_open") ? FAULT_SETUP : FAULT_CTL;

	if (what != EPOLL_CTL_DEL && fails(fault)) {
		errno = ENOMEM;
		return -1;
	}
	return __real_epoll_ctl(fd, what, target, event);
}

int __real_epoll_create1(int flags);
int __wrap_epoll_create1(int flags);

int __wrap_epoll_create1(int flags)
{
	if (!fails(FAULT_SETUP))
		return __real_epoll_create1(flags);
	errno = ENOMEM;
	return -1;
}

int __real_timerfd_create(int clock, int flags);
int __wrap_timerfd_create(int clock, int flags);

int __wrap_timerfd_create(int clock, int flags)
{
	if (!fails(FAULT_SETUP))
		return __real_timerfd_create(clock, flags);
	errno = ENOMEM;
	return -1;
}

int __real_accept4(int fd, struct sockaddr *address, socklen_t *len, int flags);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *len, int flags);

/* Another process was faster: so the call waits for the next connection. */
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *len, int flags)
{
	if (fails(FAULT_ACCEPT))
		__real_close(__real_accept4(fd, address, len, flags));
	return __real_accept4(fd, address, len, flags);
}

ssize_t __real_recv(int fd, void *buf, size_t len, int flags);
ssize_t __wrap_recv(int fd, void *buf, size_t len, int flags);

ssize_t __wrap_recv(int fd, void *buf, size_t len, int flags)
{
	if (!fails(FAULT_RECV))
		return __real_recv(fd, buf, len, flags);
	errno = ANY_OF(EAGAIN, EINTR, ENOMEM);
	return -1;
}

/*
 * close(2) has closed the descriptor even when it reports an error. A ring's
 * own are closed when it is opened, or not, and freed.
 */
int __wrap_close(int fd)
{
	int ret = __real_close(fd);

	if (!engine_call() || runs("rtl_open") || runs("rtl_free"))
		return ret;
	play_sees_close(fd, ret);
	if (!fails(FAULT_CLOSE))
		return ret;
	errno = ANY_OF(EIO, EINTR);
	return -1;
}

ssize_t __real_send(int fd, const void *buf, size_t len, int flags);
ssize_t __wrap_send(int fd, const void *buf, size_t len, int flags);

ssize_t __wrap_send(int fd, const void *buf, size_t len, int flags)
{
	if (fails(FAULT_SEND)) {
		errno = ANY_OF(EAGAIN, EINTR, ENOBUFS, ENOMEM);
		return -1;
	}
	if (fails(FAULT_SEND_BROKEN)) {
		errno = EPIPE;
		return -1;
	}
	if (len > 1 && fails(FAULT_SEND_SHORT))
		len = 1 + below(&faults.random, (unsigned int)len - 1);
	return __real_send(fd, buf, len, flags);
}

int __real_eventfd_write(int fd, eventfd_t value);
int __wrap_eventfd_write(int fd, eventfd_t value);

int __wrap_eventfd_write(int fd, eventfd_t value)
{
	if (fails(FAULT_EVENTFD))
		__real_eventfd_write(fd, UINT64_MAX - 1);
	return __real_eventfd_write(fd, value);
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);

void *__wrap_malloc(size_t size)
{
	return fails(FAULT_MALLOC) ? NULL : __real_malloc(size);
}

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);

void *__wrap_calloc(size_t n, size_t size)
{
	return fails(FAULT_CALLOC) ? NULL : __real_calloc(n, size);
}

void *__real_mmap64(void *addr, size_t len, int prot, int flags, int fd,
		    off_t offset);
void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd,
		    off_t offset);

void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd,
		    off_t offset)
{
	if (!fails(FAULT_MMAP))
		return __real_mmap64(addr, len, prot, flags, fd, offset);
	errno = ENOMEM;
	return MAP_FAILED;
}

int __real_io_uring_queue_init_params(unsigned int entries,
				      struct io_uring *ring,
				      struct io_uring_params *params);
int __wrap_io_uring_queue_init_params(unsigned int entries,
				      struct io_uring *ring,
				      struct io_uring_params *params);

int __wrap_io_uring_queue_init_params(unsigned int entries,
				      struct io_uring *ring,
				      struct io_uring_params *params)
{
	if (fails(FAULT_SETUP))
		return -ENOMEM;
	return __real_io_uring_queue_init_params(entries, ring, params);
}

int __real_io_uring_enter(unsigned int fd, unsigned int to_submit,
			  unsigned int min_complete, unsigned int flags,
			  sigset_t *sig);
int __wrap_io_uring_enter(unsigned int fd, unsigned int to_submit,
			  unsigned int min_complete, unsigned int flags,
			  sigset_t *sig);

int __wrap_io_uring_enter(unsigned int fd, unsigned int to_submit,
			  unsigned int min_complete, unsigned int flags,
			  sigset_t *sig)
{
	if (fails(FAULT_SETUP))
		return -ENOMEM;
	return __real_io_uring_enter(fd, to_submit, min_complete, flags, sig);
}

int __real_io_uring_register_eventfd(struct io_uring *ring, int fd);
int __wrap_io_uring_register_eventfd(struct io_uring *ring, int fd);

int __wrap_io_uring_register_eventfd(struct io_uring *ring, int fd)
{
	if (fails(FAULT_SETUP))
		return -ENOMEM;
	return __real_io_uring_register_eventfd(ring, fd);
}

int __real_io_uring_register_buf_ring(struct io_uring *ring,
				      struct io_uring_buf_reg *reg,
				      unsigned int flags);
int __wrap_io_uring_register_buf_ring(struct io_uring *ring,
				      struct io_uring_buf_reg *reg,
				      unsigned int flags);

int __wrap_io_uring_register_buf_ring(struct io_uring *ring,
				      struct io_uring_buf_reg *reg,
				      unsigned int flags)
{
	if (fails(FAULT_SETUP))
		return -ENOMEM;
	return __real_io_uring_register_buf_ring(ring, reg, flags);
}
