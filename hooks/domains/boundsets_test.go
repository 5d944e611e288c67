// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

// A set is not removed under a domain that is bound to it, nor with what a guest
// wrote, of which the set itself or a receipt tells.
func TestSetsInUseAreNotRemoved(t *testing.T) {
	const another = "22222222-2222-3333-4444-555555555555"
	db := hooktest.Set("db")
	bound := func(owner, set string) Facts {
		return Facts{Name: "other", UUID: another, XML: fmt.Sprintf("<domain><name>other</name><uuid>%s</uuid><metadata><dh:disks xmlns:dh='urn:diskhook:1' domain='%s'><dh:disk target='vdc' source='/s'><dh:quorum set='%s' lower='export'/></dh:disk></dh:disks></metadata><devices/></domain>", another, owner, set)}
	}
	receipt := func(set, uuid string) string {
		return `{"schema":"diskhook.quorum-use/v1","set":"` + set + `","domain":"` + another + `","domain_name":"of","target":"sda","key":"image","set_uuid":"` + uuid + `"}`
	}
	for name, c := range map[string]struct {
		user    *quorum.Use
		receipt string
		domains []Facts
		broken  error
		words   []string
	}{
		"nobody":               {},
		"its user":             {user: &quorum.Use{Domain: another, Name: "other", Target: "vda", Key: "vda"}, words: []string{"it has what the guest of domain other wrote to its disk vda", "diskhook domain revert --export FILE " + another + " vda", "forget --discard-guest-data " + another + " vda"}},
		"a receipt":            {receipt: receipt("db", db.UUID), words: []string{"the guest of domain of wrote to its disk sda", "forget --discard-guest-data " + another + " image"}},
		"of an earlier set":    {receipt: receipt("db", another)},
		"of another set":       {receipt: receipt("logs", "")},
		"unreadable":           {receipt: "{", words: []string{"image.quorum"}},
		"a domain":             {domains: []Facts{bound(another, "db")}, words: []string{"disk vdc of domain other is bound to it", "diskhook domain revert other vdc"}},
		"a clone":              {domains: []Facts{bound(testUUID, "db")}},
		"bound to another set": {domains: []Facts{bound(another, "logs")}},
		"no libvirt":           {broken: errors.New("no libvirt here")},
	} {
		t.Run(name, func(t *testing.T) {
			s := testService(t, t.TempDir(), &oneDomain{others: c.domains, broken: c.broken})
			if c.receipt != "" {
				write(t, filepath.Join(s.Host.Layout.Receipts(), another, "image.quorum"), c.receipt)
			}
			set := db
			set.User = c.user
			err := s.Unbound(t.Context(), set)
			if (err != nil) != (c.words != nil) {
				t.Fatal(err)
			}
			for _, word := range c.words {
				if line := failure.Line(err); !strings.Contains(line, word) {
					t.Errorf("the line lacks %q: %s", word, line)
				}
			}
		})
	}
}
