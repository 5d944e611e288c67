// SPDX-License-Identifier: Apache-2.0

package managed_test

import (
	"fmt"
	"os"
	"testing"

	"diskhook/storage/managed"
	"diskhook/storage/managed/database"
)

// An attach and a detach of a local device, where the storage costs nothing,
// on a host that knows 500 volumes.
func BenchmarkAttachAndDetachAmong500(b *testing.B) {
	h := newHome(b)
	h.row(func(tx *database.Tx) error {
		for i := range 500 {
			connection := fmt.Sprintf(`{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:3260","target_iqn":"iqn.x:t%d","target_lun":1}}`, i)
			if err := tx.Record(fmt.Sprintf("v%03d", i), []byte(connection), h.boot()); err != nil {
				return err
			}
		}
		return nil
	})
	must(b, os.MkdirAll(h.Dir+"/sys/class/block/drbd1", 0o755))
	must(b, os.WriteFile(h.Dir+"/dev/drbd1", nil, 0o600))
	request := managed.Request{ID: "new", Connection: []byte(`{"driver_volume_type":"local","data":{"device_path":"/dev/drbd1"}}`)}
	for b.Loop() {
		if _, err := h.Attach(b.Context(), request); err != nil {
			b.Fatal(err)
		}
		must(b, h.Detach(b.Context(), "new", ""))
	}
}
