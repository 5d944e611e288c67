// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"fmt"
	"strings"

	"diskhook/storage/failure"
)

// Properties reads the custom properties that bind, by a lookup such as
// os.LookupEnv:
//
//	diskhook    the grammar of Parse
//	localdisk   lvm|lvmthin|dir, for every disk
//	quorum      DISK=SET[,DISK=SET…], a disk's target or serial and its replica set
//	volume      DISK=ID[,DISK=ID…], the same and a managed volume of the host
func Properties(lookup func(string) (string, bool)) ([]Binding, error) {
	var all []Binding
	for _, property := range []struct {
		name string
		read func(text string) ([]Binding, error)
	}{
		{"diskhook", func(text string) ([]Binding, error) { return Parse("property diskhook", text, Property) }},
		{"localdisk", localProperty},
		{"quorum", func(text string) ([]Binding, error) {
			return pairs("quorum", "SET", "sda=db,sdb=logs with the target or serial of a disk and a set of `diskhook quorum list`", text)
		}},
		{"volume", func(text string) ([]Binding, error) {
			return pairs("volume", "ID", "sda=vol1,sdb=vol2 with the target or serial of a disk and a volume of `diskhook volume list`", text)
		}},
	} {
		text, set := lookup(property.name)
		if !set {
			continue
		}
		bindings, err := property.read(text)
		if err != nil {
			return nil, err
		}
		all = append(all, bindings...)
	}
	return all, nil
}

func localProperty(text string) ([]Binding, error) {
	b := Binding{Select: All, Kind: "local", Value: strings.TrimSpace(text), From: Property}
	if !isWord(b.Value) {
		err := failure.New(failure.Usage, "property localdisk: %q is not a value", clip(text))
		return nil, failure.Hint(err, "set it to lvm, lvmthin or dir, or remove the property")
	}
	return []Binding{b}, ofProperty("localdisk", b.check())
}

// pairs reads sda=db,sdb=logs, the property that is called like its kind.
func pairs(kind, what, example, text string) ([]Binding, error) {
	wrong := func(problem string) error {
		err := failure.New(failure.Usage, "property %s: %s", kind, problem)
		return failure.Hint(err, "write it like %s, or remove the property", example)
	}
	if len(text) > maxText {
		return nil, wrong(fmt.Sprintf("%d bytes are more than it has", len(text)))
	}
	var all []Binding
	for pair := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		disk, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		if !isWord(disk) || !isWord(value) {
			return nil, wrong(fmt.Sprintf("%q is not DISK=%s", clip(pair), what))
		}
		b := Binding{Select: disk, Kind: kind, Value: value, From: Property}
		if err := b.check(); err != nil {
			return nil, ofProperty(kind, err)
		}
		all = append(all, b)
	}
	return all, nil
}

func ofProperty(name string, err error) error {
	if err == nil {
		return nil
	}
	return failure.Hint(fmt.Errorf("property %s: %w", name, err), "%s", failure.HintOf(err))
}
