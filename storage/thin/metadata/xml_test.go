// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/thin/metadata"
)

const smallXML = `<superblock uuid="" time="2" transaction="9" flags="0" version="2" data_block_size="128" nr_data_blocks="1000">
  <device dev_id="0" mapped_blocks="990" transaction="0" creation_time="0" snap_time="0">
    <range_mapping origin_begin="0" data_begin="0" length="500" time="0"/>
    <range_mapping origin_begin="510" data_begin="510" length="490" time="0"/>
  </device>
  <device dev_id="1" mapped_blocks="15" transaction="0" creation_time="0" snap_time="2">
    <range_mapping origin_begin="0" data_begin="0" length="10" time="1"/>
    <range_mapping origin_begin="10" data_begin="500" length="5" time="2"/>
  </device>
  <device dev_id="2" mapped_blocks="1" transaction="0" creation_time="0" snap_time="2">
    <single_mapping origin_block="7" data_block="7" time="1"/>
  </device>
  <device dev_id="3" mapped_blocks="0" transaction="0" creation_time="0" snap_time="0">
  </device>
</superblock>
`

func TestXMLOfAnImage(t *testing.T) {
	m := inMemory(t, small(), 64)
	var all bytes.Buffer
	must(t, dump(t.Context(), m, &all))
	if diff := cmp.Diff(smallXML, all.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var one bytes.Buffer
	must(t, dump(t.Context(), m, &one, 2))
	lines := strings.SplitAfter(smallXML, "\n")
	if diff := cmp.Diff(lines[0]+strings.Join(lines[9:12], "")+lines[14], one.String()); diff != "" {
		t.Errorf("device 2 alone (-want +got):\n%s", diff)
	}
	err := dump(t.Context(), m, &one, 2, 4)
	if !errors.Is(err, failure.NotFound) || err.Error() != "thin device 4: not in the metadata" {
		t.Errorf("a device that is not there: %v", err)
	}
}

// fromXML is what ReadXML makes of text.
func fromXML(t *testing.T, text string) (pool, error) {
	t.Helper()
	m := make(image, 64*metadata.BlockSize)
	err := metadata.ReadXML(t.Context(), strings.NewReader(text), func(sb metadata.Superblock) (metadata.Sink, error) {
		return metadata.NewBuilder(m, 64, sb)
	})
	if err != nil {
		return pool{}, err
	}
	return read(t, m), nil
}

func TestXMLInOtherWords(t *testing.T) {
	lines := strings.SplitAfter(smallXML, "\n")
	for name, text := range map[string]string{
		"as thin_dump":                smallXML,
		"declared and remarked":       "<?xml version='1.0'?>\n<!-- <a> of '>' -->" + strings.ReplaceAll(smallXML, "<device", "<!----><device"),
		"spread and in single quotes": strings.NewReplacer(`"`, "'", "=", "\t= ", " time", "\n\ttime").Replace(smallXML),
		"defined before": strings.Replace(strings.Replace(smallXML, strings.Join(lines[6:8], ""), `<ref name="b"/>`, 1),
			lines[1], `<def name="a">`+lines[6]+`</def><def name="b"><ref name="a"/>`+lines[7]+"</def><def name='empty'/>"+lines[1], 1),
		"empty device": strings.Replace(smallXML, "snap_time=\"0\">\n  </device>\n</super", "snap_time=\"0\"/></super", 1),
		"as thin_restore wants it": strings.NewReplacer(` flags="0" version="2"`, "", `uuid=""`, `uuid="any" metadata_snap="5"`).
			Replace(smallXML),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := fromXML(t, text)
			must(t, err)
			equal(t, "from XML", got, small().used())
		})
	}
}

func TestXMLThatIsRefused(t *testing.T) {
	replace := func(old, by string) string {
		if !strings.Contains(smallXML, old) {
			t.Fatalf("%q is not in the XML", old)
		}
		return strings.Replace(smallXML, old, by, 1)
	}
	for _, c := range []struct{ text, want string }{
		{"", "XML, line 1: there is no superblock"},
		{"<pool/>", "XML, line 1: there is no superblock"},
		{"</superblock>", "XML, line 1: there is no superblock"},
		{"<!DOCTYPE superblock>" + smallXML, "XML, line 1: a declaration"},
		{"text" + smallXML, "XML, line 1: text between elements"},
		{strings.TrimSuffix(smallXML, "</superblock>\n"), "XML, line 15: superblock does not end"},
		{strings.TrimSuffix(smallXML, ">\n"), "XML, line 15: it ends in the middle"},
		{smallXML + "<superblock>", "XML, line 16: something after the superblock"},
		{smallXML + "more", "XML, line 16: it ends in the middle"},
		{replace(" uuid=\"\"", ""), "XML, line 1: superblock has no uuid"},
		{replace(" transaction=\"9\"", ""), "XML, line 1: superblock has no transaction"},
		{replace("version=\"2\"", "version=\"3\""), "XML, line 1: version is not 2"},
		{replace("flags=\"0\"", "flags=\"2\""), "XML, line 1: flags is no number that is possible"},
		{replace("time=\"2\"", "time=\"4294967296\""), "XML, line 1: time is no number that is possible"},
		{replace("time=\"2\"", "time=\"18446744073709551616\""), "XML, line 1: time is no number that is possible"},
		{replace("time=\"2\"", "time=\"-1\""), "XML, line 1: time is no number that is possible"},
		{replace("time=\"2\"", "time=\"\""), "XML, line 1: time is empty"},
		{replace("time=\"2\"", "time=\"2\" time=\"2\""), "XML, line 1: time is given twice"},
		{replace("time=\"2\"", "time=2"), "XML, line 1: an attribute without a quoted value"},
		{replace("time=\"2\"", "time=\"2"), "XML, line 1: an element that thin_dump does not write"},
		{replace("time=\"2\"", "time"), "XML, line 1: an attribute without a value"},
		{replace("<device", "<gadget"), "XML, line 2: superblock with gadget"},
		{replace("<range_mapping", "<hole"), "XML, line 3: hole among mappings"},
		{replace("time=\"0\"/>", "time=\"0\">"), "XML, line 3: range_mapping does not end"},
		{replace("</device>", "</superblock>"), "XML, line 5: device ends as superblock"},
		{replace("</device>", "</device x='1'>"), "XML, line 5: an element that thin_dump does not write"},
		{replace("dev_id=\"0\"", "dev_id=\"16777216\""), "XML, line 2: dev_id is no number that is possible"},
		{replace("mapped_blocks=\"990\"", "mapped_blocks=\"989\""), "thin device 0: 990 blocks are mapped, where mapped_blocks says 989"},
		{replace("<single_mapping origin_block=\"7\" data_block=\"7\" time=\"1\"/>", "<ref name='x'/>"), "XML, line 11: ref to what has not been defined"},
		{replace("<device", "<def name='a'/><def name='a'/><device"), "XML, line 2: def of what has been defined"},
		{"<superblock" + strings.Repeat(" ", 70000) + "/>", "XML, line 1: an element is too long"},
		{"<superblock" + strings.Repeat(" a=''", 17) + "/>", "XML, line 1: an element that thin_dump does not write"},
	} {
		_, err := fromXML(t, c.text)
		if !errors.Is(err, metadata.ErrDamaged) || !errors.Is(err, failure.Precondition) {
			t.Errorf("%.40q: %v is not damage", c.text, err)
		}
		if diff := cmp.Diff("damaged metadata: "+c.want, fmt.Sprint(err)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}
