// SPDX-License-Identifier: Apache-2.0

package libvirt

import (
	"strconv"
	"strings"

	"github.com/beevik/etree"

	"diskhook/hooks/bindings"
	"diskhook/xmlrewrite"
)

// unlabelled keeps the disks that libvirt will not label: their kind is none of
// libvirt's, or their source tells its DAC driver to leave the owner alone, by
// <seclabel model='dac' relabel='no'/> or one without a model.
func unlabelled(doc *xmlrewrite.Document, bound []bindings.Bound) []bindings.Bound {
	var kept []bindings.Bound
	reader := doc.Clone()
	for _, b := range bound {
		if !b.Labelled() {
			kept = append(kept, b)
			continue
		}
		if b.Recorded == nil || b.Disk.Path != b.Recorded.Source {
			continue // the disk itself is not ours, only what lies below it
		}
		_ = reader.EditDisk(b.Disk.Target, func(disk *etree.Element) error {
			for _, label := range disk.FindElements("./source/seclabel[@relabel='no']") {
				if model := label.SelectAttrValue("model", "dac"); model == "dac" {
					kept = append(kept, b)
					break
				}
			}
			return nil
		})
	}
	return kept
}

// imageLabel is what libvirt chose for the domain's images, from
//
//	<seclabel type='dynamic' model='dac' relabel='yes'>
//	  <label>+64055:+64055</label><imagelabel>+64055:+64055</imagelabel>
//	</seclabel>
//
// and the same with model='selinux' and a context. A domain whose images are
// not relabelled at all has none.
func imageLabel(doc *xmlrewrite.Document) bindings.Label {
	var chosen bindings.Label
	for _, label := range doc.Children("", "seclabel") {
		image := label.SelectElement("imagelabel")
		if image == nil || label.SelectAttrValue("relabel", "yes") == "no" {
			continue
		}
		switch label.SelectAttrValue("model", "") {
		case "dac":
			user, group, _ := strings.Cut(image.Text(), ":")
			uid, errU := number(user)
			gid, errG := number(group)
			if errU == nil && errG == nil {
				chosen.UID, chosen.GID, chosen.Owned = uid, gid, true
			}
		case "selinux":
			chosen.SELinux = strings.TrimSpace(image.Text())
		}
	}
	return chosen
}

// number reads libvirt's numeric form of an id, which begins with a plus sign.
func number(s string) (int, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(s), "+"), 10, 31)
	return int(n), err
}
