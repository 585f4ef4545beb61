//! The tests, in the order in which they run: each leaves the cluster as it found it, the last ones break and remove. What the rollouts leave
//! behind is looked at, and taken away, by `pages`.

mod faults;
mod gitops;
mod indexes;
mod mistakes;
mod pages;
mod quiet;
mod replicas;
mod rollouts;
mod serving;
mod shadow;
mod swaps;

use anyhow::Result;

use crate::cluster::Cluster;

pub struct Case {
    pub name: &'static str,
    pub run: fn(&Cluster) -> Result<()>,
}

macro_rules! cases {
    ($($module:ident::$name:ident),* $(,)?) => {
        pub const ALL: &[Case] = &[$(Case { name: concat!(stringify!($module), "::", stringify!($name)), run: $module::$name }),*];
    };
}

cases![
    serving::the_samples_become_ready,
    serving::a_stranger_is_refused,
    serving::the_split_matches_the_weights_and_sticks,
    serving::every_source_of_a_grounded_answer_is_in_the_corpus,
    serving::streams_and_openai_clients_work,
    serving::the_evaluation_gives_a_verdict_and_reports,
    quiet::a_second_reconcile_writes_nothing,
    quiet::a_restarted_controller_writes_nothing,
    mistakes::weights_that_sum_to_90_are_refused,
    mistakes::an_undefined_variable_is_named_and_the_last_good_revision_serves,
    mistakes::an_unknown_reference_is_named_and_the_last_good_revision_serves,
    mistakes::a_wrong_digest_is_named_and_the_old_model_serves,
    mistakes::a_broken_line_of_a_dataset_is_named,
    swaps::a_changed_model_spec_loses_no_request,
    swaps::a_new_generation_swaps_under_load_without_a_failed_query,
    rollouts::the_first_revision_serves_after_its_gate,
    rollouts::a_worse_prompt_is_caught_by_its_gate,
    rollouts::a_prompt_with_worse_feedback_is_rolled_back_in_its_ramp,
    rollouts::a_better_prompt_is_promoted,
    rollouts::a_bad_model_file_is_stopped_by_its_gate,
    rollouts::an_index_of_the_wrong_documents_is_stopped_by_its_gate,
    indexes::wrong_documents_are_stopped_by_evaluations,
    pages::a_ramp_is_seen_while_it_goes_on,
    pages::what_was_refused_is_told_with_its_reason,
    shadow::copies_are_seen_by_nobody_and_told_by_revision,
    replicas::no_unit_goes_back_while_replicas_change_over,
    gitops::git_and_the_cluster_stay_equal,
    gitops::a_chart_upgrade_changes_nothing_in_mid_rollout,
    gitops::people_act_on_a_rollout_and_git_stays_equal,
    faults::a_killed_engine_heals_and_loses_no_accepted_request,
    faults::the_gateway_serves_while_the_api_server_is_down,
    faults::a_deleted_resource_takes_its_children_along,
    gitops::nothing_of_users_was_ever_written_by_us,
];
