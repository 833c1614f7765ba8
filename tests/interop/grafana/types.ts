// What a dashboard's file may contain, from Grafana's own types.

import type * as schema from "@grafana/schema";
import type * as barchart from "./node_modules/@grafana/schema/dist/types/raw/composable/barchart/panelcfg/x/BarChartPanelCfg_types.gen.js";
import type * as bargauge from "./node_modules/@grafana/schema/dist/types/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen.js";
import type * as gauge from "./node_modules/@grafana/schema/dist/types/raw/composable/gauge/panelcfg/x/GaugePanelCfg_types.gen.js";
import type * as heatmap from "./node_modules/@grafana/schema/dist/types/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen.js";
import type * as stat from "./node_modules/@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.js";
import type * as timeline from "./node_modules/@grafana/schema/dist/types/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen.js";
import type * as table from "./node_modules/@grafana/schema/dist/types/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen.js";
import type * as timeseries from "./node_modules/@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.js";

/** A type as JSON has it: values of enums instead of the enums, and nothing that has a default must be given. */
type Json<T> = T extends string
  ? `${T}`
  : T extends (infer Item)[]
    ? Json<Item>[]
    : T extends object
      ? { [Key in keyof T]?: Json<T[Key]> }
      : T;

/** Options and field configurations by the kind of a panel. */
interface Kinds {
  barchart: [barchart.Options, barchart.FieldConfig];
  bargauge: [bargauge.Options, object];
  gauge: [gauge.Options, object];
  heatmap: [heatmap.Options, heatmap.FieldConfig];
  stat: [stat.Options, object];
  "state-timeline": [timeline.Options, timeline.FieldConfig];
  table: [table.Options, table.FieldConfig];
  timeseries: [timeseries.Options, timeseries.FieldConfig];
}

/** What Prometheus' data source adds to a query of any data source. */
interface PrometheusQuery extends schema.DataQuery {
  expr: string;
  legendFormat: string;
  format: "time_series" | "table" | "heatmap";
  instant: boolean;
  range: boolean;
  editorMode: "code";
}

type Defaults<Kind extends keyof Kinds> = Omit<Json<schema.FieldConfig>, "custom" | "thresholds" | "mappings"> & {
  custom: Json<Kinds[Kind][1]>;
  mappings: Json<schema.ValueMapping>[];
  thresholds: { mode: `${schema.ThresholdsMode}`; steps: { color: string; value: number | null }[] };
};

export type PanelOf<Kind extends keyof Kinds> = Omit<Json<schema.Panel>, "fieldConfig" | "options" | "targets"> & {
  type: Kind;
  options: Json<Kinds[Kind][0]>;
  targets: PrometheusQuery[];
  fieldConfig: { defaults: Defaults<Kind>; overrides: Json<schema.FieldConfigSource["overrides"]> };
};

export type AnyPanel = { [Kind in keyof Kinds]: PanelOf<Kind> }[keyof Kinds] | Json<schema.RowPanel>;

/** What Prometheus' data source adds to an annotation and to a variable. */
type Annotation = Json<schema.AnnotationQuery> & { expr: string; step: string; titleFormat: string };
type Variable = Json<schema.VariableModel> & { definition?: string };

export type DashboardFile = Omit<Json<schema.Dashboard>, "annotations" | "panels" | "templating"> & {
  annotations: { list: Annotation[] };
  templating: { list: Variable[] };
  panels: AnyPanel[];
};
