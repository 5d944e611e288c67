// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/command/commandtest"
	"diskhook/storage/failure"
)

func client(t *testing.T, answer commandtest.Answer) (*Client, *commandtest.Runner) {
	run := &commandtest.Runner{T: t, Answers: []commandtest.Answer{answer}}
	return &Client{Run: run, Program: "/libexec/diskhook-domain", URI: "test:///default"}, run
}

// The domain's name is in the request, never among the arguments.
func TestNameIsNoArgument(t *testing.T) {
	var request string
	c, run := client(t, commandtest.Answer{
		Stdout: `{"name":"-rf","uuid":"u","state":"shut off","persistent":true,"snapshots":2}`,
		Do: func(cmd command.Cmd) {
			b, err := io.ReadAll(cmd.Stdin)
			if err != nil {
				t.Error(err)
			}
			request = string(b)
			if cmd.Timeout == 0 {
				t.Error("the call may last for ever")
			}
		},
	})
	f, err := c.Facts(t.Context(), "-rf\n")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Facts{Name: "-rf", UUID: "u", State: "shut off", Persistent: true, Snapshots: 2}, f); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"/libexec/diskhook-domain --connect test:///default facts"}, run.Lines()); diff != "" {
		t.Error(diff)
	}
	if request != `{"domain":"-rf\n"}` {
		t.Errorf("request %s", request)
	}
}

func TestErrorsComeBackWithTheirKind(t *testing.T) {
	for name, tc := range map[string]struct {
		answer commandtest.Answer
		kind   *failure.Kind
		text   string
		hint   string
	}{
		"not found": {commandtest.Answer{Code: 1, Stdout: `{"error":{"code":"not_found","message":"domain x: no","hint":"look"}}`}, failure.NotFound, "domain x: no", "look"},
		"plain":     {commandtest.Answer{Code: 1, Stdout: `{"error":{"code":"","message":"domain x: odd"}}`}, nil, "domain x: odd", ""},
		"crash":     {commandtest.Answer{Code: 2, Stderr: "panic: oh"}, nil, "exited 2: panic: oh", ""},
		"missing":   {commandtest.Answer{Code: -1, Err: failure.New(failure.Precondition, "no such file")}, failure.Precondition, "no such file", "install the package"},
		"nonsense":  {commandtest.Answer{Stdout: `hello`}, nil, "its answer", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := client(t, tc.answer)
			_, err := c.Facts(t.Context(), "x")
			if err == nil || failure.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.text) || !strings.Contains(failure.HintOf(err), tc.hint) {
				t.Errorf("got %v (%v, hint %q)", err, failure.KindOf(err), failure.HintOf(err))
			}
		})
	}
}

func TestWithoutAConnectionNothingIsRun(t *testing.T) {
	c := &Client{Run: &commandtest.Runner{T: t}, Program: "/libexec/diskhook-domain"}
	if _, err := c.List(t.Context(), false); failure.KindOf(err) != failure.Precondition || failure.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
}

func TestRequests(t *testing.T) {
	for name, tc := range map[string]struct {
		call func(*Client) error
		verb string
		want string
	}{
		"define": {func(c *Client) error { return c.Define(t.Context(), []byte("<domain/>")) }, VerbDefine, `{"xml":"<domain/>"}`},
		"resize": {func(c *Client) error { return c.BlockResize(t.Context(), "u", "vda", 1<<40) }, VerbBlockResize, `{"domain":"u","target":"vda","size":1099511627776}`},
		"list":   {func(c *Client) error { _, err := c.List(t.Context(), true); return err }, VerbList, `{"xml":true}`},
	} {
		t.Run(name, func(t *testing.T) {
			var got any
			c, run := client(t, commandtest.Answer{Stdout: "{}", Do: func(cmd command.Cmd) {
				if err := json.NewDecoder(cmd.Stdin).Decode(&got); err != nil {
					t.Error(err)
				}
			}})
			if err := tc.call(c); err != nil {
				t.Fatal(err)
			}
			var want any
			if err := json.Unmarshal([]byte(tc.want), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if line := run.Lines()[0]; !strings.HasSuffix(line, " "+tc.verb) {
				t.Errorf("ran %s", line)
			}
		})
	}
}
