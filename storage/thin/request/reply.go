// SPDX-License-Identifier: Apache-2.0

package request

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
)

// ErrRefused says that the master answered and did not do it. After any other error
// of a Channel nobody knows.
var ErrRefused = errors.New("the master refuses")

// outcome is a reply's code: 0 is done, 1 a failure of no kind, and the others are
// the kinds, whose numbers never change.
var outcome = map[*failure.Kind]uint16{
	nil: 1, failure.Usage: 2, failure.NotFound: 3, failure.Conflict: 4, failure.Temporary: 5, failure.NoSpace: 6,
	failure.Precondition: 7, failure.Problems: 8, failure.WouldChange: 10,
}

// refusal is the body of a reply that says no.
type refusal struct {
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// Bounds of a refusal's texts, in bytes. JSON makes up to six bytes of one.
const (
	maxMessage = layout.MaxBody / 10
	maxHint    = layout.MaxBody / 20
)

// Answer makes the reply of a request's message: what was done, or why not. epoch
// is the master's.
func Answer(to layout.Message, epoch uint64, done Reply, refused error) layout.Message {
	m := layout.Message{Sequence: to.Sequence, Epoch: epoch}
	var body any = done
	if refused != nil {
		m.Code = outcome[failure.KindOf(refused)]
		body = refusal{short(refused.Error(), maxMessage), short(failure.HintOf(refused), maxHint)}
	}
	m.Body, _ = json.Marshal(body) // numbers and strings: it cannot fail
	return m
}

func short(s string, most int) string {
	s = failure.OneLine(s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// Result reads a reply: the refusal is the error, with the kind and the hint that
// it had at the master.
func Result(m layout.Message) (Reply, error) {
	if m.Code == 0 {
		var r Reply
		if err := json.Unmarshal(m.Body, &r); err != nil {
			return Reply{}, failure.New(failure.Problems, "reply to request %d: %w", m.Sequence, err)
		}
		return r, nil
	}
	var no refusal
	if err := json.Unmarshal(m.Body, &no); err != nil || no.Message == "" {
		return Reply{}, failure.New(failure.Problems, "reply to request %d: it refuses with code %d and does not say why", m.Sequence, m.Code)
	}
	err := fmt.Errorf("%w: %s", ErrRefused, failure.OneLine(no.Message))
	for kind, code := range outcome {
		if code == m.Code && kind != nil {
			err = failure.Wrap(kind, err)
		}
	}
	if no.Hint != "" {
		err = failure.Hint(err, "%s", failure.OneLine(no.Hint))
	}
	return Reply{}, err
}
