// SPDX-License-Identifier: Apache-2.0

// Package failpoint lets tests stop the program between any two steps that
// change something on disk.
//
// A point is passed with Hit(name). Outside builds with the tag testroot it
// compiles to nothing, so no environment can crash a host's hook. With the
// tag, DISKHOOK_FAILPOINT selects what happens:
//
//	name=kill      the process kills itself with SIGKILL, as a crash would
//	name=error     Hit returns ErrInjected
//	name=sleep:5s  Hit sleeps, then goes on
//	name=kill@3    at the third pass only (also for error and sleep)
//	#4=kill        at the fourth point passed, whatever its name
//
// Terms are separated by commas. DISKHOOK_FAILPOINT_LOG names a file to which
// every passed point is appended, so that a test can enumerate them all and
// then crash at each.
package failpoint

import "errors"

// ErrInjected is what Hit returns at a point set to error.
var ErrInjected = errors.New("injected failure")
