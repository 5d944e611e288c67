// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/host"
)

func TestPlaceIsWhatIsThere(t *testing.T) {
	for want, r := range map[string]Receipt{
		"/var/lib/diskhook/local/dh_1_vda.raw":   {Home: "/var/lib/diskhook/local", Name: "dh_1_vda"},
		"/var/lib/diskhook/local/dh_1_vda.qcow2": {Home: "/var/lib/diskhook/local", Name: "dh_1_vda", Overlay: &Overlay{}},
		"vg/dh_1_vda":                            {Home: "vg", Name: "dh_1_vda"},
	} {
		if got := r.Place(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestDuringNamesTheDiskOnce(t *testing.T) {
	d := Disk{Domain: "id", DomainName: "vm", Target: "vda"}
	plain := failure.New(failure.Conflict, "it is open")
	for want, err := range map[string]error{
		"domain vm: disk vda: settle: it is open": plain,
		"domain vm: disk vda: it is gone":         failure.New(failure.Conflict, "%s: it is gone", d),
	} {
		got := during(d, "settle", err)
		if got.Error() != want || !errors.Is(got, failure.Conflict) {
			t.Errorf("%v, want %s", got, want)
		}
	}
}

// A disk that has no copy is called by the name that others of its domain know.
func TestUnknownDiskIsCalledByItsDomainsName(t *testing.T) {
	const id = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf"
	s := &Service{Layout: host.Layout{Root: t.TempDir()}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	r := Receipt{Schema: receiptSchema, Domain: id, DomainName: "vm", Target: "vda", Backend: "dir", OnStop: Keep, Home: "/local", Name: "dh", Copy: id, Machine: "m", Size: 512}
	if err := r.write(s.Layout, "vda"); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"vda": "domain vm: disk vda", "vdz": "domain vm: disk vdz"} {
		if got := s.known(id, key).String(); got != want {
			t.Errorf("%s: %q", key, got)
		}
	}
	if _, err := s.Settle(id, "vdz"); !errors.Is(err, failure.NotFound) || err.Error() != "domain vm: disk vdz: no local copy" {
		t.Errorf("settle: %v", err)
	}
	if err := s.Cancel(context.Background(), id, "vdz"); !errors.Is(err, failure.NotFound) || err.Error() != "domain vm: disk vdz: nothing copies" {
		t.Errorf("cancel: %v", err)
	}
}
