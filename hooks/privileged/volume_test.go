// SPDX-License-Identifier: Apache-2.0

package privileged_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/privileged"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/managed/connector"
)

// TestConnectorInfo: what the host has arrives whole at the other end, by one
// fixed command.
func TestConnectorInfo(t *testing.T) {
	want := connector.Properties{
		Platform: "x86_64", OSType: "linux", Host: "h1", Multipath: true, Initiator: "iqn.1994-05.com.redhat:h1", NVMeMultipath: true,
		WWPNs: []string{"5001438000000005"}, WWNNs: []string{"5001438000000015"}, NQN: "nqn.h1", NVMeHostID: "i", SystemUUID: "u",
	}
	wire := &loop{Server: &privileged.Server{ConnectorInfo: func(ctx context.Context) (connector.Properties, error) {
		if _, limited := ctx.Deadline(); !limited {
			t.Error("looked without a limit of time")
		}
		return want, nil
	}}}
	got, err := privileged.NewClient(wire, host.Layout{}, host.Config{}).ConnectorInfo(t.Context())
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if diff := cmp.Diff([][]string{{"sudo", "-n", privileged.Helper, "volume", "connector"}}, wire.argv); diff != "" {
		t.Error(diff)
	}
}

// TestConnectorInfoRefused: the host does not answer, or the request has more
// than it may, for which the host is not even looked at.
func TestConnectorInfoRefused(t *testing.T) {
	looked := 0
	server := &privileged.Server{ConnectorInfo: func(context.Context) (connector.Properties, error) {
		looked++
		return connector.Properties{Initiator: "iqn.x"}, failure.New(failure.Temporary, "multipathd: no answer")
	}}
	got, err := privileged.NewClient(&loop{Server: server}, host.Layout{}, host.Config{}).ConnectorInfo(t.Context())
	if failure.KindOf(err) != failure.Temporary || !strings.Contains(failure.Line(err), "connector info: multipathd: no answer") || !cmp.Equal(got, connector.Properties{}) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, c := range map[string]struct {
		args    []string
		request string
	}{
		"a field":        {[]string{"volume", "connector"}, `{"root":"/tmp/evil"}`},
		"no object":      {[]string{"volume", "connector"}, `["x"]`},
		"nothing":        {[]string{"volume", "connector"}, ``},
		"two documents":  {[]string{"volume", "connector"}, `{}{}`},
		"huge":           {[]string{"volume", "connector"}, strings.Repeat(" ", 2<<20) + "{}"},
		"an argument":    {[]string{"volume", "connector", "/etc/shadow"}, `{}`},
		"another verb":   {[]string{"volume", "attach"}, `{}`},
		"a word too few": {[]string{"volume connector"}, `{}`},
	} {
		var out, log bytes.Buffer
		if server.Serve(t.Context(), c.args, strings.NewReader(c.request), &out, &log) || !strings.Contains(out.String(), `"code":"usage"`) {
			t.Errorf("%s: %s", name, out.String())
		}
	}
	if looked != 1 {
		t.Errorf("looked at the host %d times", looked)
	}
}

// TestVolumesRefused: what is no volume or no VM, or brings a connection with
// it, is refused before anything is looked at (there are no volumes here).
// What does work TestVolumes of package vdsm has.
func TestVolumesRefused(t *testing.T) {
	const vm = `"domain":"69b6b942-b5bf-4740-bb95-6752ffbd3bcf"`
	for _, verb := range []string{"plan", "attach", "release"} {
		for name, request := range map[string]string{
			"no volume":     `{` + vm + `}`,
			"a path":        `{"volume":"../x",` + vm + `}`,
			"an option":     `{"volume":"-x",` + vm + `}`,
			"no VM":         `{"volume":"v1"}`,
			"no uuid":       `{"volume":"v1","domain":"../../etc"}`,
			"a connection":  `{"volume":"v1",` + vm + `,"connection_info":{}}`,
			"two documents": `{"volume":"v1",` + vm + `}{}`,
		} {
			var out, log bytes.Buffer
			if new(privileged.Server).Serve(t.Context(), []string{"volume", verb}, strings.NewReader(request), &out, &log) || !strings.Contains(out.String(), `"code":"usage"`) {
				t.Errorf("%s %s: %s", verb, name, out.String())
			}
		}
	}
	var out, log bytes.Buffer
	if new(privileged.Server).Serve(t.Context(), []string{"volume", "release-rest"}, strings.NewReader(`{"domain":"x"}`), &out, &log) || !strings.Contains(out.String(), `"code":"usage"`) {
		t.Errorf("release-rest: %s", out.String())
	}
}
