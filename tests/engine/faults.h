/* SPDX-License-Identifier: MIT */
/*
 * System calls that fail when they are told to.
 *
 * The linker's --wrap (meson.build) sends the calls named here through
 * faults.c. They fail only while the engine runs, never for the harness.
 */
#ifndef FAULTS_H
#define FAULTS_H

#include <stdbool.h>
#include <stdint.h>

enum fault {
	FAULT_ENTER,	/* io_uring_enter(2) that submits: an error */
	FAULT_SHORT,	/* ... takes only some of the SQEs */
	FAULT_CANCEL,	/* ... does not find what it should cancel */
	FAULT_EVENTS,	/* ... that runs work */
	FAULT_WAIT,	/* ... or epoll_wait(2), that waits */
	FAULT_LOOK,	/* epoll_wait(2) that does not */
	FAULT_CTL,	/* epoll_ctl(2): memory is short */
	FAULT_RECV,	/* recv(2): an error that passes */
	FAULT_ACCEPT,	/* accept4(2): another process took the connection */
	FAULT_CLOSE,	/* close(2) closes and reports an error */
	FAULT_SEND,	/* send(2): an error that passes */
	FAULT_SEND_SHORT,
	FAULT_SEND_BROKEN,
	FAULT_EVENTFD,	/* eventfd_write(3) meets a full counter */
	FAULT_MALLOC,
	FAULT_CALLOC,
	FAULT_MMAP,
	FAULT_SETUP,	/* what opens io_uring, or epoll and a timer */
	FAULTS,
};

/* Chances: one in so many calls fails, 0: none does. */
void faults_start(uint64_t seed, const unsigned int one_in[FAULTS]);
void faults_stop(void);

/* Only the nth call fails, whichever it is. True if there was one. */
void faults_start_nth(unsigned int n);
bool faults_reached_nth(void);

/* How often it has happened since faults_start(), and in the last call. */
unsigned int faults_in_play(enum fault fault);
unsigned int faults_in_call(enum fault fault);
uint64_t faults_sqes_taken(void);

void engine_enter(const char *call);
void engine_leave(void);
const char *engine_call(void);	/* NULL: the harness runs */

/* Every call of the engine goes through one of these. */
#define ENGINE(function, ...) __extension__({ \
	engine_enter(#function); \
	__auto_type result_ = function(__VA_ARGS__); \
	engine_leave(); \
	result_; \
})

#define ENGINE_VOID(function, ...) do { \
	engine_enter(#function); \
	function(__VA_ARGS__); \
	engine_leave(); \
} while (0)

#endif
