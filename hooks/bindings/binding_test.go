// SPDX-License-Identifier: Apache-2.0

package bindings_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string // Binding.String
	}{
		{"local=lvmthin", []string{"local=lvmthin"}},
		{"local", []string{"local"}},
		{"*:local=dir", []string{"local=dir"}},
		{"sda:local=lvm,on-stop=discard,fill=start", []string{"sda:local=lvm,fill=start,on-stop=discard"}},
		{" sda:local=lvm ; *:local=dir; ", []string{"sda:local=lvm", "local=dir"}},
		{"c9865ca8-f6d2-4363-bec2-af870a87a819:local=dir", []string{"c9865ca8-f6d2-4363-bec2-af870a87a819:local=dir"}},
		{"local=dir,host=" + strings.Repeat("ab", 16), []string{"local=dir,host=" + strings.Repeat("ab", 16)}},
	} {
		bs, err := bindings.Parse("--bind", c.text, bindings.Flag)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		var got []string
		for _, b := range bs {
			got = append(got, b.String())
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%q: %s", c.text, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]struct {
		kind *failure.Kind
		word string
	}{
		"":                                       {failure.Usage, "empty"},
		";":                                      {failure.Usage, "empty"},
		"local=lvm;;local=dir":                   {failure.Usage, "empty"},
		"local=":                                 {failure.Usage, "not a value"},
		"local=zfs":                              {failure.Usage, "local=zfs"},
		"local=lvm,":                             {failure.Usage, "not an option"},
		"local=lvm,fill":                         {failure.Usage, "not an option"},
		"local=lvm,fill=later":                   {failure.Usage, "fill=later"},
		"local=lvm,fill=instant":                 {failure.Usage, "fill=instant"},
		"local=lvm,template=overlay":             {failure.Usage, "template=overlay"},
		"local=lvm,template=auto":                {failure.Usage, "template=auto"},
		"local=lvm,on-stop=keep,on-stop=discard": {failure.Usage, "twice"},
		"local=lvm,vg=other":                     {failure.Usage, "vg"},
		"local=lvm,copy=abc":                     {failure.Usage, "copy"},
		"local=lvm,host=../../x":                 {failure.Usage, "not an option"},
		"local=lvm,host=ab":                      {failure.Usage, "machine id"},
		"../x:local=lvm":                         {failure.Usage, "not a target"},
		"-rf:local=lvm":                          {failure.Usage, "not a target"},
		":local=lvm":                             {failure.Usage, "not a target"},
		"sda:sdb:local=lvm":                      {failure.Usage, "not a kind"},
		"local=lvm\nlocal=dir":                   {failure.Usage, "not a value"},
		"local=lv\x00m":                          {failure.Usage, "not a value"},
		"local=$(reboot)":                        {failure.Usage, "not a value"},
		"floppy=1":                               {failure.Usage, "floppy"},
		"quorum=db":                              {failure.Usage, "name the disk"},
		"image=x":                                {failure.Usage, "not for VMs of oVirt"},
		"vda:image=" + stranger + ",repo=r":      {failure.Usage, "not for VMs of oVirt"},
		"vda:local=dir,image=" + stranger + ",repo=r": {failure.Usage, "not for VMs of oVirt"},
		"vda:local=dir,repo=r":                        {failure.Usage, "belong together"},
		"vda:thin=x":                                  {failure.Usage, "not for VMs of oVirt"},
		"local=thin":                                  {failure.Usage, "not for VMs of oVirt"},
		"local=thin,template=overlay":                 {failure.Usage, "no templates in a thin cluster"},
		strings.Repeat("x", 5000):                     {failure.Usage, "5000 bytes"},
		strings.Repeat("local=dir;", 300):             {failure.Usage, "256"},
	} {
		_, err := bindings.Parse("property diskhook", text, bindings.Property)
		refused(t, err, want.kind, "property diskhook", want.word)
	}
}

func TestProperties(t *testing.T) {
	for name, c := range map[string]struct {
		env  map[string]string
		want []string
	}{
		"none":          {map[string]string{"PATH": "/x", "vmId": "y"}, nil},
		"alias":         {map[string]string{"localdisk": "lvmthin"}, []string{"local=lvmthin"}},
		"alias, spaces": {map[string]string{"localdisk": " lvm "}, []string{"local=lvm"}},
		"both":          {map[string]string{"localdisk": "lvm", "diskhook": "sda:local=dir"}, []string{"sda:local=dir", "local=lvm"}},
	} {
		bs, err := bindings.Properties(lookup(c.env))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got []string
		for _, b := range bs {
			got = append(got, b.String())
			if b.From != bindings.Property {
				t.Errorf("%s: spelling %v", name, b.From)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for name, c := range map[string]struct {
		env  map[string]string
		kind *failure.Kind
		word string
	}{
		"empty":    {map[string]string{"localdisk": ""}, failure.Usage, "localdisk"},
		"wrong":    {map[string]string{"localdisk": "zfs"}, failure.Usage, "zfs"},
		"path":     {map[string]string{"localdisk": "../../dev/sda"}, failure.Usage, "localdisk"},
		"thin":     {map[string]string{"localdisk": "thin"}, failure.Usage, "not for VMs of oVirt"},
		"quorum":   {map[string]string{"quorum": "db"}, failure.Usage, "DISK=SET"},
		"not ours": {map[string]string{"diskhook": "thin=x"}, failure.Usage, "not for VMs of oVirt"},
	} {
		_, err := bindings.Properties(lookup(c.env))
		t.Run(name, func(t *testing.T) { refused(t, err, c.kind, c.word) })
	}
}

func lookup(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := env[name]; return v, ok }
}

// FuzzParse: whatever is accepted means the same when written again, and no
// part of it can leave its place in a path or an argument list.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"local=lvm", "sda:local=dir,fill=now;*:local=lvmthin", "local", "a:b:c=d,e=f", "=;,:", "quorum=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		bs, err := bindings.Parse("x", text, bindings.Flag)
		if err != nil {
			if line := failure.Line(err); strings.ContainsAny(line, "\n\r\x1b\x00") {
				t.Errorf("line %q", line)
			}
			return
		}
		for _, b := range bs {
			again, err := bindings.Parse("x", b.String(), bindings.Flag)
			if err != nil || len(again) != 1 || again[0].String() != b.String() {
				t.Errorf("%q was read as %q, which is read as %v, %v", text, b, again, err)
			}
			for _, word := range []string{b.Select, b.Kind, b.Value} {
				if strings.ContainsAny(word, "/ \t\n'\"$`\\;,=:") || strings.HasPrefix(word, "-") {
					t.Errorf("%q let %q through", text, word)
				}
			}
		}
	})
}
