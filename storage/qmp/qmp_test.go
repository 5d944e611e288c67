// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
)

const hello = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}` + "\r\n"

// monitor is a QEMU that answers by answer, which is told each command but the
// first (qmp_capabilities).
func monitor(t *testing.T, answer func(out io.Writer, cmd string, id uint64)) *Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = theirs.Close() })
	go func() {
		_, _ = io.WriteString(theirs, hello)
		in := bufio.NewScanner(theirs)
		for in.Scan() {
			var c struct {
				Execute string
				ID      uint64
			}
			if err := json.Unmarshal(in.Bytes(), &c); err != nil {
				t.Errorf("not a command: %s", in.Bytes())
			}
			if c.Execute == "qmp_capabilities" {
				fmt.Fprintf(theirs, `{"return": {}, "id": %d}`+"\n", c.ID)
				continue
			}
			answer(theirs, c.Execute, c.ID)
		}
	}()
	c, err := Open(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestRepliesAndEventsInAnyMixture(t *testing.T) {
	c := monitor(t, func(out io.Writer, cmd string, id uint64) {
		fmt.Fprintf(out, `{"timestamp": {"seconds": 5, "microseconds": 7}, "event": "ONE", "data": {"node-name": "r2"}}`+"\n\n")
		if cmd == "bad" {
			fmt.Fprintf(out, `{"id": %d, "error": {"class": "DeviceNotFound", "desc": "no such\nnode"}}`+"\n", id)
		} else {
			fmt.Fprintf(out, `{"id": %d, "return": {"n": %d}}`+"\n", id, len(cmd))
		}
		fmt.Fprintf(out, `{"event": "TWO", "timestamp": {}}`+"\n")
	})
	if v := c.Version().String(); v != "7.2.22" {
		t.Error(v)
	}
	var got struct{ N int }
	if err := c.Execute(t.Context(), "query-x", map[string]any{"a": 1}, &got); err != nil || got.N != 7 {
		t.Errorf("%+v, %v", got, err)
	}
	err := c.Execute(t.Context(), "bad", nil, nil)
	var refused *Error
	if !errors.As(err, &refused) || refused.Class != "DeviceNotFound" || err.Error() != "bad: no such node" {
		t.Errorf("%v", err)
	}
	var names []string
	for range 4 {
		e := <-c.Events()
		names = append(names, e.Name)
		if e.Name == "ONE" && (string(e.Data) != `{"node-name": "r2"}` || e.Time.Time() != time.Unix(5, 7000).UTC()) {
			t.Errorf("%s %v", e.Data, e.Time)
		}
	}
	if diff := cmp.Diff([]string{"ONE", "TWO", "ONE", "TWO"}, names); diff != "" {
		t.Error(diff)
	}
}

// A command whose context ended is answered later; the next one gets its own.
func TestLateReplyIsDropped(t *testing.T) {
	var first uint64
	c := monitor(t, func(out io.Writer, cmd string, id uint64) {
		if cmd == "slow" {
			first = id
			return
		}
		fmt.Fprintf(out, `{"id": %d, "return": "late"}`+"\n"+`{"id": %d, "return": "own"}`+"\n", first, id)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "slow: no answer") {
		t.Errorf("%v", err)
	}
	var got string
	if err := c.Execute(t.Context(), "next", nil, &got); err != nil || got != "own" {
		t.Errorf("%q, %v", got, err)
	}
}

// Whatever ends the connection ends each wait on it, and says why.
func TestConnectionFailsAsAWhole(t *testing.T) {
	for says, line := range map[string]string{
		"not QMP":        "{}\n",
		"invalid char":   "hello\n",
		"unexpected EOF": `{"return"`,
		"more than":      strings.Repeat("x", mostLine+2),
	} {
		c := monitor(t, func(out io.Writer, _ string, _ uint64) {
			_, _ = io.WriteString(out, line)
			_ = out.(net.Conn).Close()
		})
		err := c.Execute(t.Context(), "x", nil, nil)
		if !errors.Is(err, ErrClosed) || !errors.Is(err, failure.Temporary) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
		if _, open := <-c.Events(); open {
			t.Errorf("%s: events go on", says)
		}
		if err := c.Execute(t.Context(), "y", nil, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: later: %v", says, err)
		}
	}
}

func TestEventsThatNobodyTakesEndIt(t *testing.T) {
	c := monitor(t, func(out io.Writer, _ string, _ uint64) {
		for range mostEvents + 1 {
			if _, err := io.WriteString(out, `{"event": "X"}`+"\n"); err != nil {
				return
			}
		}
	})
	if err := c.Execute(t.Context(), "x", nil, nil); err == nil || !strings.Contains(err.Error(), "nobody took") {
		t.Errorf("%v", err)
	}
}

func TestNoGreeting(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, ours); !errors.Is(err, ErrClosed) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// Whatever comes, the reader ends, takes no more than there is and hands on
// only what QMP knows.
func FuzzReadMessage(f *testing.F) {
	f.Add([]byte(hello))
	f.Add([]byte(`{"event": "QUORUM_REPORT_BAD", "data": {"node-name": "r2", "sectors-count": 2048, "sector-num": 0, "type": "read"}, "timestamp": {"seconds": 1, "microseconds": 2}}` + "\n"))
	f.Add([]byte(`{"return": {}, "id": 1}` + "\n" + `{"error": {"class": "GenericError", "desc": "x"}, "id": 2}` + "\r\n"))
	f.Add([]byte("\n\n{\"id\":\"text\"}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bufio.NewReaderSize(bytes.NewReader(data), 16)
		for {
			m, err := readMessage(in)
			if err != nil {
				return
			}
			if m.Greeting == nil && m.Return == nil && m.Error == nil && m.Event.Name == "" {
				t.Errorf("%+v", m)
			}
			_ = m.decode("x", new(any))
		}
	})
}
