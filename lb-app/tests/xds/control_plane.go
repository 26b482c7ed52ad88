// A control plane for the tests: Envoy's own (go-control-plane), which knows nothing of Weir.
//
// Reads snapshots from standard input, one a line, as the JSON of
// {"version": "1", "clusters": [...], "endpoints": [...], "listeners": [...]}, whose resources are in
// protobuf's JSON. Says on standard output what happens, one JSON object a line. With a second argument, a
// directory, it also writes each answer down there, as it goes out.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/udp_proxy/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// All balancers get the same.
type everybody struct{}

func (everybody) ID(*core.Node) string { return "everybody" }

var said sync.Mutex

func say(what map[string]any) {
	said.Lock()
	defer said.Unlock()
	line, err := json.Marshal(what)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

type written struct {
	Version   string            `json:"version"`
	Clusters  []json.RawMessage `json:"clusters"`
	Endpoints []json.RawMessage `json:"endpoints"`
	Listeners []json.RawMessage `json:"listeners"`
}

func read[T proto.Message](all []json.RawMessage, empty func() T) []types.Resource {
	resources := []types.Resource{}
	for _, one := range all {
		message := empty()
		if err := protojson.Unmarshal(one, message); err != nil {
			fail(err)
		}
		resources = append(resources, message)
	}
	return resources
}

func request(variant string, node *core.Node, kind, version, nonce string, names []string, refusal string) {
	say(map[string]any{
		"variant": variant, "node": node.GetId(), "type": kind, "version": version,
		"nonce": nonce, "names": names, "refusal": refusal,
	})
}

func record(folder, variant string, it proto.Message) {
	bytes, err := proto.Marshal(it)
	if err != nil {
		fail(err)
	}
	name := fmt.Sprintf("%s_%d", variant, time.Now().UnixNano())
	if err := os.WriteFile(filepath.Join(folder, name), bytes, 0o644); err != nil {
		fail(err)
	}
}

func main() {
	address := "127.0.0.1:0"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	ctx := context.Background()
	snapshots := cache.NewSnapshotCache(true, everybody{}, nil)
	callbacks := server.CallbackFuncs{
		StreamRequestFunc: func(_ int64, it *discovery.DiscoveryRequest) error {
			request("sotw", it.Node, it.TypeUrl, it.VersionInfo, it.ResponseNonce, it.ResourceNames, it.ErrorDetail.GetMessage())
			return nil
		},
		StreamDeltaRequestFunc: func(_ int64, it *discovery.DeltaDiscoveryRequest) error {
			request("delta", it.Node, it.TypeUrl, "", it.ResponseNonce, it.ResourceNamesSubscribe, it.ErrorDetail.GetMessage())
			return nil
		},
	}
	if len(os.Args) > 2 {
		callbacks.StreamResponseFunc = func(_ context.Context, _ int64, _ *discovery.DiscoveryRequest, it *discovery.DiscoveryResponse) {
			record(os.Args[2], "sotw", it)
		}
		callbacks.StreamDeltaResponseFunc = func(_ int64, _ *discovery.DeltaDiscoveryRequest, it *discovery.DeltaDiscoveryResponse) {
			record(os.Args[2], "delta", it)
		}
	}
	plane := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(plane, server.NewServer(ctx, snapshots, callbacks))
	socket, err := net.Listen("tcp", address)
	if err != nil {
		fail(err)
	}
	say(map[string]any{"listening": socket.Addr().String()})
	go func() {
		if err := plane.Serve(socket); err != nil {
			fail(err)
		}
	}()

	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var it written
		if err := json.Unmarshal(lines.Bytes(), &it); err != nil {
			fail(err)
		}
		snapshot, err := cache.NewSnapshot(it.Version, map[resource.Type][]types.Resource{
			resource.ClusterType:  read(it.Clusters, func() *cluster.Cluster { return &cluster.Cluster{} }),
			resource.EndpointType: read(it.Endpoints, func() *endpoint.ClusterLoadAssignment { return &endpoint.ClusterLoadAssignment{} }),
			resource.ListenerType: read(it.Listeners, func() *listener.Listener { return &listener.Listener{} }),
		})
		if err != nil {
			fail(err)
		}
		if err := snapshots.SetSnapshot(ctx, "everybody", snapshot); err != nil {
			fail(err)
		}
		say(map[string]any{"snapshot": it.Version})
	}
}
