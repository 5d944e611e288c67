// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// The exit codes of diskhook. Hooks have their own: libvirt knows 0 and 1,
// VDSM 0, 1 and 2. A signal is 128 and its number.
const (
	exitOK      = 0
	exitFailure = 1
)

// exitCodes is the one table from kinds of failure to exit codes.
func exitCodes() map[*failure.Kind]int {
	return map[*failure.Kind]int{
		failure.Usage:        2,
		failure.NotFound:     3,
		failure.Conflict:     4,
		failure.Temporary:    5,
		failure.NoSpace:      6,
		failure.Precondition: 7,
		failure.Problems:     8,
		failure.WouldChange:  10,
	}
}

// kindOf classifies err. xmlrewrite knows no kinds, hence its part here.
func kindOf(err error) *failure.Kind {
	if k := failure.KindOf(err); k != nil {
		return k
	}
	for _, known := range []struct {
		is   error
		kind *failure.Kind
	}{
		{xmlrewrite.ErrTooLarge, failure.Usage},
		{xmlrewrite.ErrTooDeep, failure.Usage},
		{xmlrewrite.ErrDTD, failure.Usage},
		{xmlrewrite.ErrDuplicateAttribute, failure.Usage},
		{xmlrewrite.ErrMalformed, failure.Usage},
		{xmlrewrite.ErrNotFound, failure.NotFound},
		{xmlrewrite.ErrUnsupported, failure.Precondition},
		{xmlrewrite.ErrMetadata, failure.Precondition},
		{context.DeadlineExceeded, failure.Temporary},
	} {
		if errors.Is(err, known.is) {
			return known.kind
		}
	}
	return nil
}

// finish prints err, if there is one, and returns the exit code. Standard
// output stays data.
func (p *program) finish(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	var sig stopped
	if errors.As(context.Cause(ctx), &sig) {
		p.complain(err, "interrupted")
		return 128 + int(sig.signal)
	}
	kind := kindOf(err)
	if kind == nil {
		p.complain(err, "failure")
		return exitFailure
	}
	// That a dry run found work to do is said by what it printed.
	if kind != failure.WouldChange {
		p.complain(err, kind.Code)
	}
	return exitCodes()[kind]
}

// complain prints one line for a person and one for the way out, or one
// object for a program. Control characters do not get through.
func (p *program) complain(err error, code string) {
	message, hint := failure.OneLine(err.Error()), failure.OneLine(failure.HintOf(err))
	if wantsJSON(args(p)) {
		_ = json.NewEncoder(p.stderr).Encode(struct {
			Type    string `json:"type"`
			Code    string `json:"code"`
			Message string `json:"message"`
			Hint    string `json:"hint"`
		}{"error", code, message, hint})
		return
	}
	fmt.Fprintf(p.stderr, "diskhook: %s\n", message)
	if hint != "" {
		fmt.Fprintf(p.stderr, "hint: %s\n", hint)
	}
}

// wouldChange ends a dry run that found something to do.
func wouldChange() error { return failure.New(failure.WouldChange, "a dry run would change something") }
