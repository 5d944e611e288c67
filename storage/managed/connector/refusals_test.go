// SPDX-License-Identifier: Apache-2.0

package connector_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/connector/connectortest"
)

// What is missing or wrong is refused before anything runs, and the error does
// not repeat the document.
func TestBadConnections(t *testing.T) {
	for _, tc := range []struct {
		document string
		want     error
		says     string
	}{
		{`[]`, connector.ErrInvalid, "not a JSON object"},
		{`{"driver_volume_type":"iscsi","data":{}} x`, connector.ErrInvalid, "not a JSON object"},
		{`{"data":{}}`, connector.ErrInvalid, "driver_volume_type is missing"},
		{`{"driver_volume_type":"iscsi"}`, connector.ErrInvalid, "data is missing"},
		{`{"driver_volume_type":7,"data":{}}`, connector.ErrInvalid, "not a JSON object"},
		{`{"driver_volume_type":"iscsi","data":[]}`, connector.ErrInvalid, "not a JSON object"},
		{`{"driver_volume_type":"storpool","data":{"client_id":1}}`, connector.ErrUnsupported, "storpool"},
		{`{"driver_volume_type":"local","data":{"device_path":"/dev/x"},"adapter":"../../bin/sh"}`, connector.ErrInvalid, "adapter"},
		{`{"driver_volume_type":"local","data":{"device_path":"/dev/x"},"adapter":"-x"}`, connector.ErrInvalid, "adapter"},
		{`{"driver_volume_type":"local","data":{"device_path":"/dev/x"},"adapter":"none"}`, connector.ErrAdapter, "managedvolume-helper-none"},
		{`{"driver_volume_type":"local","data":{"device_path":"/etc/shadow"}}`, connector.ErrInvalid, "device_path"},
		{`{"driver_volume_type":"local","data":{"device_path":"/dev/../etc/shadow"}}`, connector.ErrInvalid, "device_path"},
		{`{"driver_volume_type":"local","data":{}}`, connector.ErrInvalid, "device_path is missing"},
		{`{"driver_volume_type":"iscsi","data":{"target_iqn":"iqn.x:y","target_lun":1}}`, connector.ErrInvalid, "target_portal"},
		{`{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:3260","target_lun":1}}`, connector.ErrInvalid, "target_iqn"},
		{`{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:3260","target_iqn":"iqn.x:y"}}`, connector.ErrInvalid, "target_lun"},
		{`{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:3260","target_iqn":"--op=delete","target_lun":1}}`, connector.ErrInvalid, "not the name of a target"},
		{`{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:3260","target_iqn":"../../x","target_lun":1}}`, connector.ErrInvalid, "not the name of a target"},
		{`{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:99999","target_iqn":"iqn.x:y","target_lun":1}}`, connector.ErrInvalid, "portal"},
		{`{"driver_volume_type":"iscsi","data":{"target_portal":"../x:1","target_iqn":"iqn.x:y","target_lun":1}}`, connector.ErrInvalid, "portal"},
		{`{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:1","target_iqn":"iqn.x:y","target_lun":-1}}`, connector.ErrInvalid, "lun"},
		{`{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:1","target_iqn":"iqn.x:y","target_lun":true}}`, connector.ErrInvalid, "lun"},
		{`{"driver_volume_type":"iscsi","data":{"target_portals":["10.0.0.5:1"],"target_iqns":["iqn.x:y"],"target_luns":[1,2]}}`, connector.ErrInvalid, "equally many"},
		{`{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:1","target_iqn":"iqn.x:y","target_lun":1,"auth_method":"CHAP","auth_username":"u"}}`, connector.ErrInvalid, "auth_password"},
		{`{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:1","target_iqn":"iqn.x:y","target_lun":1,"auth_method":"KRB5"}}`, connector.ErrUnsupported, "KRB5"},
		{`{"driver_volume_type":"fibre_channel","data":{"target_lun":1}}`, connector.ErrInvalid, "target_wwn"},
		{`{"driver_volume_type":"fibre_channel","data":{"target_wwn":"zz","target_lun":1}}`, connector.ErrInvalid, "port name"},
		{`{"driver_volume_type":"nvmeof","data":{"target_portal":"1.1.1.1","target_port":4420}}`, connector.ErrInvalid, "nqn"},
		{`{"driver_volume_type":"nvmeof","data":{"target_nqn":"n","portals":[["1.1.1.1","4420"]]}}`, connector.ErrInvalid, "portals"},
		{`{"driver_volume_type":"nvmeof","data":{"target_nqn":"n","portals":[["1.1.1.1","4420","fc"]]}}`, connector.ErrUnsupported, "fc"},
		{`{"driver_volume_type":"nvmeof","data":{"vol_uuid":"x","volume_replicas":[]}}`, connector.ErrUnsupported, "replicas"},
		{`{"driver_volume_type":"rbd","data":{"name":"volume-1","hosts":[],"ports":[]}}`, connector.ErrInvalid, "POOL/IMAGE"},
		{`{"driver_volume_type":"rbd","data":{"name":"a/-b","hosts":[],"ports":[]}}`, connector.ErrInvalid, "POOL/IMAGE"},
		{`{"driver_volume_type":"rbd","data":{"name":"a/b","hosts":["h"],"ports":[]}}`, connector.ErrInvalid, "ports"},
		{`{"driver_volume_type":"rbd","data":{"name":"a/b","hosts":["h\nkeyring = x"],"ports":["1"]}}`, connector.ErrInvalid, "hosts"},
		{`{"driver_volume_type":"rbd","data":{"name":"a/b","auth_username":"x]\n","hosts":[],"ports":[]}}`, connector.ErrInvalid, "auth_username"},
		{`{"driver_volume_type":"nfs","data":{"export":"-o:/x","name":"f"}}`, connector.ErrInvalid, "export"},
		{`{"driver_volume_type":"nfs","data":{"export":"nas:/x","name":"../f"}}`, connector.ErrInvalid, "name"},
		{`{"driver_volume_type":"nfs","data":{"export":"nas:/x","name":"f","options":"-o dev"}}`, connector.ErrUnsupported, "dev"},
		{`{"driver_volume_type":"nfs","data":{"export":"nas:/x","name":"f","options":"-o a b"}}`, connector.ErrInvalid, "options"},
		{`{"driver_volume_type":"nfs","data":{"export":"nas:/x","name":"f","format":"qcow2"}}`, connector.ErrUnsupported, "qcow2"},
	} {
		w := world(t)
		info, err := connector.ParseInfo([]byte(tc.document))
		if err == nil {
			_, err = host(w).Open("v1", info)
		}
		if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) || strings.ContainsAny(err.Error(), "\n") {
			t.Errorf("%s: %v", tc.document, err)
		}
		if lines := w.Lines(); lines != nil {
			t.Errorf("%s ran %v", tc.document, lines)
		}
	}
}

// What the host must not touch, and what must not be taken for the volume.
func TestRefusals(t *testing.T) {
	type do func(t *testing.T, w *connectortest.World, c connector.Connector) error
	attach := func(t *testing.T, _ *connectortest.World, c connector.Connector) error {
		_, err := c.Attach(t.Context())
		return err
	}
	opened := func(node string) do {
		return func(t *testing.T, w *connectortest.World, c connector.Connector) error {
			a, err := c.Attach(t.Context())
			must(t, err)
			must(t, w.Change(func(s *connectortest.Storage) { s.Open = []string{node} }))
			err = c.Detach(t.Context(), a, nil)
			if _, gone := os.Stat(a.Path); gone != nil {
				t.Error("it was taken away")
			}
			return err
		}
	}
	other := connectortest.LUN{Designator: "naa.6001405bb", Sectors: gib}
	for name, tc := range map[string]struct {
		document string
		set      func(*connectortest.Storage)
		do       do
		want     error
		says     string
	}{
		"paths to two volumes": {twoPaths, func(s *connectortest.Storage) {
			for _, target := range s.ISCSI {
				target.Others = map[string]map[uint64]connectortest.LUN{"[fd00::5]:3260": {300 + 0x4000: other}}
			}
		}, attach, connector.ErrMismatch, "sda is 36001405aa, and sdb is 36001405bb"},
		"another namespace":         {strings.ReplaceAll(nvmeV2, "5C1E0F4C", "00000000"), nil, attach, connector.ErrMismatch, uuid},
		"no map is made":            {oneLUN, func(s *connectortest.Storage) { s.Blacklist = []string{"36001405aa"} }, attach, connector.ErrNoMultipath, "36001405aa"},
		"all portals dead":          {oneLUN, func(s *connectortest.Storage) { kill(s, "10.0.0.5:3260", "[fd00::5]:3260") }, attach, nil, "timed out"},
		"no such lun":               {strings.ReplaceAll(oneLUN, `"target_lun":1`, `"target_lun":2`), nil, attach, failure.Temporary, "iscsi:iqn.2010-10.org.openstack:volume-1:2: not there"},
		"no target seen":            {strings.ReplaceAll(fc, "00000", "10000"), nil, attach, failure.Temporary, "seen by a port"},
		"no such image":             {strings.ReplaceAll(image, "volume-1", "volume-2"), nil, attach, nil, "error opening image"},
		"no such file":              {strings.ReplaceAll(nfsFile, "volume-1", "volume-9"), nil, attach, failure.NotFound, "volume-9"},
		"no such local device":      {localDev, nil, attach, failure.NotFound, "drbd1000"},
		"a map that is open":        {oneLUN, nil, opened("/dev/dm-0"), connector.ErrInUse, "qemu-system-x86"},
		"an image that is open":     {image, nil, opened("/dev/rbd0"), connector.ErrInUse, "qemu-system-x86"},
		"a namespace that is open":  {nvmeV1, nil, opened("/dev/nvme0n10"), connector.ErrInUse, "qemu-system-x86"},
		"a single path that is one": {oneLUN, func(s *connectortest.Storage) { s.Multipathd = false }, opened("/dev/sda"), connector.ErrInUse, "qemu-system-x86"},
	} {
		t.Run(name, func(t *testing.T) {
			w := world(t)
			if tc.set != nil {
				must(t, w.Change(tc.set))
			}
			c := open(t, host(w), tc.document)
			err := tc.do(t, w, c)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v", err)
			}
			must(t, w.Change(func(s *connectortest.Storage) { s.Open = nil }))
			must(t, c.Detach(t.Context(), connector.Attachment{}, nil))
			if left := w.Left(); left != nil {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func kill(s *connectortest.Storage, portals ...string) {
	for _, target := range s.ISCSI {
		target.Dead = portals
	}
}

// One portal of two is dead: the volume comes by the other.
func TestDeadPortal(t *testing.T) {
	w := world(t)
	must(t, w.Change(func(s *connectortest.Storage) { kill(s, "10.0.0.5:3260") }))
	c := open(t, host(w), twoPaths)
	a, err := c.Attach(t.Context())
	must(t, err)
	if a.MultipathID != "36001405aa" {
		t.Errorf("%+v", a)
	}
	must(t, c.Detach(t.Context(), a, nil))
	if left := w.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
}
