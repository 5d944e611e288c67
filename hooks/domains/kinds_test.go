// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"strings"
	"testing"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/managed"
	"diskhook/storage/repository"
)

// What hosts have of each kind, as far as binding asks for it.
type (
	anyThin   struct{ bindings.Thin }
	anyVolume struct{ bindings.Volumes }
	anyImage  struct{ bindings.Images }
)

func (anyThin) Cluster(string) (string, error)             { return "san", nil }
func (anyThin) Path(cluster, volume string) string         { return "/nowhere/" + cluster + "/" + volume }
func (anyThin) There(_ context.Context, _, _ string) error { return nil }
func (anyVolume) Link(id string) string                    { return "/nowhere/" + id }
func (anyVolume) Node(string) (managed.Node, error)        { return managed.Node{Block: true}, nil }
func (anyImage) PreviewImage(_ context.Context, _, _ string, _ repository.Preparing) (repository.Preview, error) {
	return repository.Preview{Prepared: repository.Prepared{Path: "/nowhere/image"}}, nil
}

// What a disk is to be is free when two domains are about to be bound to it; the second
// one finds out that it is not any more.
func TestBoundMeanwhile(t *testing.T) {
	for text, want := range map[string]struct{ held, hint string }{
		"vda:thin=v":   {"volume san/v is disk vda of domain other", "diskhook thin clone --cluster san v NEW"},
		"vda:volume=v": {"volume v is disk vda of domain other", "give one of both a volume of its own"},
		"vda:image=11111111-aaaa-4aaa-8aaa-111111111111,repo=r": {"image r/11111111-aaaa-4aaa-8aaa-111111111111 is disk vda of domain other", "diskhook image snapshot r/11111111-aaaa-4aaa-8aaa-111111111111"},
	} {
		t.Run(text, func(t *testing.T) {
			root := t.TempDir()
			libvirt := &oneDomain{xml: bare("/nowhere/vda.raw", "raw")}
			s := testService(t, root, libvirt)
			s.Host.Thin, s.Host.Volumes = anyThin{}, anyVolume{}
			s.Host.Images = func() (bindings.Images, error) { return anyImage{}, nil }
			bind, err := bindings.Parse("--bind", text, bindings.Flag)
			if err != nil {
				t.Fatal(err)
			}
			p, err := s.PlanApply(t.Context(), "vm", bind, false)
			if err != nil {
				t.Fatal(err)
			}
			was := libvirt.xml
			libvirt.others = []Facts{{Name: "other", UUID: otherUUID, XML: strings.ReplaceAll(otherwise(string(p.After.Bytes())), "vda.raw", "else.raw")}}
			_, err = s.PlanApply(t.Context(), "vm", bind, false)
			refusedWith(t, err, failure.Conflict, want.held, want.hint)
			refusedWith(t, s.Apply(t.Context(), p, localdisk.Waiting{}), failure.Conflict, want.held, want.hint)
			if libvirt.xml != was {
				t.Errorf("it is bound: %s", libvirt.xml)
			}
			libvirt.others = nil
			if err := s.Apply(t.Context(), p, localdisk.Waiting{}); err != nil || libvirt.xml == was {
				t.Errorf("free: %v", err)
			}
		})
	}
}
