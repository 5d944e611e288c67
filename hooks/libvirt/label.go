// SPDX-License-Identifier: Apache-2.0

package libvirt

import (
	"strconv"
	"strings"

	"github.com/beevik/etree"

	"diskhook/hooks/bindings"
	"diskhook/xmlrewrite"
)

// unlabelled keeps the disks whose source tells libvirt's DAC driver to leave
// the owner alone: <seclabel model='dac' relabel='no'/>, or one without a model.
func unlabelled(doc *xmlrewrite.Document, bound []bindings.Bound) []bindings.Bound {
	var kept []bindings.Bound
	reader := doc.Clone()
	for _, b := range bound {
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

// dacLabel is the owner that libvirt chose for the domain's images, from
//
//	<seclabel type='dynamic' model='dac' relabel='yes'>
//	  <label>+64055:+64055</label><imagelabel>+64055:+64055</imagelabel>
//	</seclabel>
//
// A domain whose images are not relabelled at all has none.
func dacLabel(doc *xmlrewrite.Document) (uid, gid int, ok bool) {
	for _, label := range doc.Children("", "seclabel") {
		if label.SelectAttrValue("model", "") != "dac" || label.SelectAttrValue("relabel", "yes") == "no" {
			continue
		}
		image := label.SelectElement("imagelabel")
		if image == nil {
			continue
		}
		user, group, _ := strings.Cut(image.Text(), ":")
		uid, errU := number(user)
		gid, errG := number(group)
		return uid, gid, errU == nil && errG == nil
	}
	return 0, 0, false
}

// number reads libvirt's numeric form of an id, which begins with a plus sign.
func number(s string) (int, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(s), "+"), 10, 31)
	return int(n), err
}
