// SPDX-License-Identifier: Apache-2.0

package membership

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"diskhook/storage/failure"
)

// Kind is how it is known that a host cannot write.
type Kind string

// The kinds of evidence. A lease that ran out is not among them.
const (
	// FenceAgent: a program that cuts a host off, or its power, succeeded.
	FenceAgent Kind = "fence-agent"
	// Sanlock: the host's lease on the shared disk is dead, and its watchdog has
	// therefore reset it.
	Sanlock Kind = "sanlock"
	// Operator: somebody typed the host's name.
	Operator Kind = "operator"
)

// Kinds are all of them.
func Kinds() []Kind { return []Kind{FenceAgent, Sanlock, Operator} }

// Evidence is what `--evidence KIND:TEXT` says. The map keeps it with the host.
type Evidence struct {
	Kind Kind
	Text string // one line: which program, when, who
}

func (e Evidence) String() string { return string(e.Kind) + ":" + e.Text }

// maxEvidence bounds what the map keeps of a text, in bytes.
const maxEvidence = 256

// ParseEvidence reads KIND:TEXT. Anything else is a failure.Usage.
func ParseEvidence(s string) (Evidence, error) {
	kind, text, ok := strings.Cut(s, ":")
	e := Evidence{Kind(kind), strings.TrimSpace(text)}
	switch {
	case !ok || !slices.Contains(Kinds(), e.Kind):
		err := failure.New(failure.Usage, "evidence %q: it does not say how it is known that the host cannot write", clip(s))
		return Evidence{}, failure.Hint(err, "--evidence fence-agent:TEXT, sanlock:TEXT or operator:TEXT; that a host is not heard of is no evidence")
	case e.Text == "" || len(e.Text) > maxEvidence || strings.ContainsFunc(e.Text, unicode.IsControl):
		err := failure.New(failure.Usage, "evidence %q: the text is empty, longer than %d bytes, or more than a line", clip(s), maxEvidence)
		return Evidence{}, failure.Hint(err, "say in a line which program or person did what, and when")
	}
	return e, nil
}

func clip(s string) string { return s[:min(len(s), maxEvidence)] }

// Typed is the evidence of an operator who was asked for the name of a host and
// typed one. A name that differs is a failure.Conflict, and no evidence.
func Typed(host, typed, when string) (Evidence, error) {
	if strings.TrimSpace(typed) != host {
		err := failure.New(failure.Conflict, "host %s: %q was typed in the place of its name", host, clip(strings.TrimSpace(typed)))
		return Evidence{}, failure.Hint(err, "nothing was changed; switch the host off, then run the command again and type %s", host)
	}
	return Evidence{Operator, fmt.Sprintf("its name was typed at %s", when)}, nil
}
