// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/command/commandtest"
	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

const inlineXML = `<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><devices>
<disk type='file'><source file='/1'/><target dev='vda'/><alias name='ua-vda'/></disk>
<disk type='file'><source file='/2'/><target dev='vdb'/><alias name='ua-vdb'/></disk></devices>
<qemu:commandline><qemu:arg value='-blockdev'/><qemu:arg value='{"driver":"quorum","node-name":"quorum-vda","children":["libvirt-2-format",{"node-name":"vda-r2"}]}'/>
<qemu:arg value='-blockdev'/><qemu:arg value='{"driver":"quorum","node-name":"quorum-vdb","children":["libvirt-1-format",{"node-name":"vdb-r2"}]}'/></qemu:commandline>
<qemu:override><qemu:device alias='ua-vda'><qemu:frontend><qemu:property name='drive' type='string' value='quorum-vda'/></qemu:frontend></qemu:device>
<qemu:device alias='ua-vdb'><qemu:frontend><qemu:property name='drive' type='string' value='quorum-vdb'/></qemu:frontend></qemu:device></qemu:override></domain>`

// watching is diskhook-domain that tells these lines, and then ends as end says.
// It checks that its input stays open all the while.
func watching(t *testing.T, end commandtest.Answer, lines ...string) *Client {
	xml, err := json.Marshal(Definition{inlineXML})
	if err != nil {
		t.Fatal(err)
	}
	end.Prefix = "/libexec/diskhook-domain --connect qemu:///system watch"
	end.Do = func(cmd command.Cmd) {
		request, err := bufio.NewReader(cmd.Stdin).ReadString('\n')
		if err != nil || request != `{"domain":"u"}`+"\n" || cmd.Timeout != 0 {
			t.Errorf("request %q, %v, for %s", request, err, cmd.Timeout)
		}
		for _, line := range lines {
			if _, err := io.WriteString(cmd.Stdout, line+"\n"); err != nil && len(line) < maxTold {
				t.Error(err)
			}
		}
	}
	run := &commandtest.Runner{T: t, Answers: []commandtest.Answer{
		{Prefix: "/libexec/diskhook-domain --connect qemu:///system live", Stdout: string(xml)}, end,
	}}
	return &Client{Run: run, Program: "/libexec/diskhook-domain", URI: "qemu:///system"}
}

// Events are of the disk that is asked for, and name a replica by its place.
func TestWatchOfOneQuorum(t *testing.T) {
	bad := func(node string) string {
		return fmt.Sprintf(`{"event":"QUORUM_REPORT_BAD","data":{"node-name":%q,"type":"read","sector-num":8,"sectors-count":2},"listening":true}`, node)
	}
	c := watching(t, commandtest.Answer{},
		`{"listening":true}`, bad("libvirt-2-format"), bad("libvirt-1-format"), bad("vda-r2"), "no JSON", bad("vdb-r2"),
		`{"event":"QUORUM_REPORT_BAD","data":[]}`,
		`{"event":"QUORUM_FAILURE","data":{"reference":"quorum-vdb","sector-num":1,"sectors-count":1}}`,
		`{"event":"QUORUM_FAILURE","data":{"reference":"quorum-vda","sector-num":1,"sectors-count":1}}`,
		`{"listening":false,"why":"libvirt: the connection ended"}`)
	var heard []quorum.Heard
	err := QuorumWatcher{c, slog.New(slog.DiscardHandler)}.Watch(t.Context(), quorum.Use{Domain: "u", Target: "vda"}, func(h quorum.Heard) { heard = append(heard, h) })
	if !errors.Is(err, failure.Temporary) {
		t.Errorf("its end: %v", err)
	}
	report := quorum.Report{Type: "read", Sector: 8, Sectors: 2}
	first, second := report, report
	first.Node, second.Node = "libvirt-2-format", "vda-r2"
	want := []quorum.Heard{
		{Listening: true},
		{Event: quorum.ReportBad, Report: first, Child: 0},
		{Event: quorum.ReportBad, Report: second, Child: 1},
		{Event: quorum.ReportFailure, Report: quorum.Report{Reference: "quorum-vda", Sector: 1, Sectors: 1}, Child: -1},
		{Why: "libvirt: the connection ended"},
	}
	if diff := cmp.Diff(want, heard); diff != "" {
		t.Error(diff)
	}
}

// How a watch ends says whether to try again.
func TestWatchEnds(t *testing.T) {
	for name, c := range map[string]struct {
		client *Client
		kind   *failure.Kind
		says   string
	}{
		"unsupported": {watching(t, commandtest.Answer{Code: 1}, `{"error":{"code":"precondition","message":"not supported by the connection driver"}}`), failure.Precondition, "not supported"},
		"missing":     {watching(t, commandtest.Answer{Code: -1, Err: failure.New(failure.Precondition, "no such file")}), failure.Precondition, "no such file"},
		"killed":      {watching(t, commandtest.Answer{Code: -1, Err: errors.New("signal: killed")}, `{"listening":true}`), nil, "killed"},
		"ended":       {watching(t, commandtest.Answer{}), failure.Temporary, "it ended"},
		"too much":    {watching(t, commandtest.Answer{}, strings.Repeat(" ", maxTold+1)), nil, "too long"},
		"nowhere":     {&Client{}, failure.Precondition, "no connection is named"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.client.Watch(t.Context(), "u", func(Told) {})
			if err == nil || failure.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v (%v)", err, failure.KindOf(err))
			}
		})
	}
}
